/** The settings of completions in an editor. */
import { z } from 'zod';
import { flag, milliseconds, whole } from '../lib/process/setting-types.ts';

/** How the repository stands in the prompt, in the words of `rag.mode`. */
const MODES = ['compressed', 'mixed', 'text', 'off'] as const;

export const LSP_SETTINGS = {
  repo: z
    .string()
    .max(256)
    .default('')
    .describe('name of the repository in requests; when empty, that of the folder that holds .git'),
  followRepository: flag
    .default(true)
    .describe('index the repository of an open document, and what changes in it, as llavacode index --watch does'),
  ragMode: z
    .enum(MODES)
    .default('compressed')
    .describe(`how the repository stands in the prompt: ${MODES.join(', ')}`),
  completionTokens: whole(1, 4096).default(128).describe('most tokens of a completion'),
  completionTimeoutMs: milliseconds(1).default(10_000).describe('time that a completion may take, in ms'),
};
