/** Repository context as text before the prompt, against which compressed context is measured. */
import { extname } from 'node:path';
import type { PromptFormat } from './prompt-format.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface TextContext {
  readonly kind: 'text';
  readonly repo: string;
  /** Path of the file being completed; "" if the client did not send one. */
  readonly path: string;
  /** Best first. */
  readonly chunks: readonly { readonly path: string; readonly text: string }[];
  /** The context is cut to this many tokens from its beginning, as the authors do (cfc_seq_length = 512). */
  readonly maxTokens: number;
}

/** Endings of languages whose comments begin with `//`. All others are written with `#`, as the authors do. */
const SLASHES = new Set(
  '.c .cc .cpp .cs .cxx .dart .go .h .hpp .java .js .jsx .kt .mjs .rs .scala .swift .ts .tsx'.split(' '),
);

/** The ids of the context; none if there are no chunks. */
export function textContextIds(tokenizer: Tokenizer, format: PromptFormat, context: TextContext): number[] {
  if (context.chunks.length === 0) return [];
  return format.repository === undefined
    ? tokenizer.encodeHead(commented(context), context.maxTokens)
    : repositoryForm(tokenizer, format.repository, context);
}

/**
 * Qwen2.5-Coder's form: the repository's name, then each file under its name. The cut spares the current file's name.
 */
function repositoryForm(
  tokenizer: Tokenizer,
  { repo, file }: NonNullable<PromptFormat['repository']>,
  context: TextContext,
): number[] {
  const ids = [repo, ...tokenizer.encode(`${context.repo}\n`)];
  for (const chunk of context.chunks) {
    if (ids.length >= context.maxTokens) break;
    ids.push(file, ...tokenizer.encodeHead(`${chunk.path}\n${withoutLastNewline(chunk.text)}\n`, context.maxTokens));
  }
  return [...ids.slice(0, context.maxTokens), file, ...tokenizer.encode(`${context.path}\n`)];
}

/** The paper's and Repoformer's form: each chunk as a comment under its path. */
function commented(context: TextContext): string {
  const mark = SLASHES.has(extname(context.path || context.chunks[0]!.path)) ? '//' : '#';
  const blocks = context.chunks.map((chunk) => {
    const lines = withoutLastNewline(chunk.text).split('\n');
    return [`the below code fragment can be found in:`, chunk.path, ...lines]
      .map((line) => `${mark} ${line}\n`)
      .join('');
  });
  return `${mark} Here are some relevant code fragments from other files of the repo:\n\n${blocks.join('\n')}\n`;
}

const withoutLastNewline = (text: string) => (text.endsWith('\n') ? text.slice(0, -1) : text);
