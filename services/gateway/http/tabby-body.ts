/** The bodies of Tabby: its form of `POST /v1/completions`, and `POST /v1/events`. */
import { z } from 'zod';
import { resolvePath } from '../../lib/rag/store/path-form.ts';
import { COMPLETION_EVENTS } from '../completion/acceptance.ts';
import { COMPLETION_DEFAULTS, type RagRequest } from '../request.ts';
import { key, ragField, readRag, sessionField } from './completion-body.ts';
import { editorBody, ignoringUnknown, seed, temperature } from './editor-body.ts';
import { overlayText } from './repository.ts';

/** What a client of Tabby wants of the answer. */
export interface TabbyForm {
  readonly api: 'tabby';
  readonly returnPrompt: boolean;
  readonly returnSnippets: boolean;
  /** Texts of the client itself that may stand in the prompt. */
  readonly snippets: readonly Snippet[];
}

interface Snippet {
  readonly filepath: string;
  readonly body: string;
  readonly score: number;
}

/** Tabby's own defaults. */
const MAX_TOKENS = 64;
const TEMPERATURE = 0.1;
const MAX_SNIPPETS = 256;
const MAX_PATH = 4_096;

const path = z.string().max(MAX_PATH);
const snippets = z
  .array(z.object({ filepath: path, body: z.string(), score: z.number().default(1) }))
  .max(MAX_SNIPPETS)
  .default([]);

const segments = z.object({
  prefix: z.string(),
  suffix: z.string().optional(),
  filepath: path.optional(),
  git_url: path.optional(),
  declarations: snippets,
  relevant_snippets_from_changed_files: snippets,
  relevant_snippets_from_recently_opened_files: snippets,
  clipboard: z.string().optional().describe('has no effect'),
});

const fields = z
  .object({
    language: z.string().max(64).optional(),
    segments: segments.optional(),
    user: key.optional().describe('has no effect'),
    temperature: temperature.default(TEMPERATURE),
    seed: seed.optional(),
    mode: z.literal('standard', { error: 'is supported only as standard' }).optional(),
    debug_options: z
      .object({
        raw_prompt: z.string().optional(),
        return_snippets: z.boolean().default(false),
        return_prompt: z.boolean().default(false),
        disable_retrieval_augmented_code_completion: z.boolean().default(false),
      })
      .prefault({}),
    session: sessionField.optional(),
    rag: ragField.optional(),
  })
  .refine(({ segments: given, debug_options }) => given !== undefined || debug_options.raw_prompt !== undefined, {
    path: ['segments'],
    message: 'is required',
  });

/** Whether a body is Tabby's: it shares its route with OpenAI's. */
export const isTabby = (body: unknown): boolean =>
  typeof body === 'object' &&
  body !== null &&
  [(body as { segments?: unknown }).segments, (body as { debug_options?: unknown }).debug_options].some(
    (field) => typeof field === 'object' && field !== null,
  );

const WITHOUT_CONTEXT: RagRequest = {
  repo: undefined,
  mode: 'off',
  topK: 1,
  path: undefined,
  retriever: undefined,
  maxTextTokens: 1,
};

export const tabbyBody = editorBody(fields, (body) => {
  const { raw_prompt, return_prompt, return_snippets, ...debug } = body.debug_options;
  const given = raw_prompt === undefined ? body.segments : undefined;
  const withoutContext = debug.disable_retrieval_augmented_code_completion;
  const own = given === undefined || withoutContext ? [] : snippetsOf(given);
  const filePath = given?.filepath ? resolvePath(given.filepath) : undefined;
  const overlay = own.map(({ filepath, body: text }) => overlayText(filepath, text, true));
  const { rag, ...texts } = readRag(body.rag, overlay.length === 0 ? undefined : overlay);
  return {
    request: {
      prompts: [raw_prompt ?? given?.prefix ?? ''],
      suffix: given?.suffix || undefined,
      maxTokens: MAX_TOKENS,
      sampling: { ...COMPLETION_DEFAULTS.sampling, temperature: body.temperature },
      seed: body.seed,
      language: body.language,
      gitUrl: given?.git_url || undefined,
      filePath,
      session: body.session,
      ...(withoutContext ? { rag: WITHOUT_CONTEXT } : { ...texts, rag: rag && { ...rag, path: rag.path ?? filePath } }),
      // The prompt's ids are what `return_prompt` shows.
      returnTokenIds: return_prompt,
    },
    form: {
      api: 'tabby' as const,
      returnPrompt: return_prompt,
      returnSnippets: return_snippets,
      snippets: own,
    },
  };
});

const snippetsOf = (given: z.output<typeof segments>): Snippet[] => [
  ...given.declarations,
  ...given.relevant_snippets_from_changed_files,
  ...given.relevant_snippets_from_recently_opened_files,
];

export const eventBody = ignoringUnknown(
  z.object({
    type: z.enum(COMPLETION_EVENTS, { error: `must be one of ${COMPLETION_EVENTS.join(', ')}` }),
    completion_id: z.string().min(1).max(256),
    choice_index: z.int().min(0),
    view_id: z.unknown().optional(),
    elapsed: z.unknown().optional(),
  }),
);
