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

/** The part of a context that fits. */
export interface FittedText {
  readonly ids: readonly number[];
  /** Chunks that stand in it, at least in part. */
  readonly chunks: number;
  /** Whether `room`, rather than the context's own limit, has shortened it. */
  readonly cut: boolean;
}

/**
 * The ids of the context, made in steps; none if there are no chunks, or if not even a part of one fits.
 * @param room the most ids, those included that the context's own limit does not count.
 */
export function* textContextSteps(
  tokenizer: Tokenizer,
  format: PromptFormat,
  context: TextContext,
  room: number,
): Generator<void, FittedText> {
  if (context.chunks.length === 0) return { ids: [], chunks: 0, cut: false };
  const { ids, chunks, cut } =
    format.repository === undefined
      ? yield* commentForm(tokenizer, context, room)
      : yield* repositoryForm(tokenizer, format.repository, context, room);
  return { ids: chunks === 0 ? [] : ids, chunks, cut };
}

/**
 * Qwen2.5-Coder's form: the repository's name, then each file under its name. The context's own limit spares the
 * current file's name; the room does not.
 */
function* repositoryForm(
  tokenizer: Tokenizer,
  { repo, file }: NonNullable<PromptFormat['repository']>,
  context: TextContext,
  room: number,
): Generator<void, FittedText> {
  const end = [file, ...tokenizer.encode(`${context.path}\n`)];
  const limit = Math.min(context.maxTokens, room - end.length);
  const ids = [repo, ...tokenizer.encode(`${context.repo}\n`)];
  let chunks = 0;
  for (const chunk of context.chunks) {
    if (ids.length >= limit) break;
    const text = `${chunk.path}\n${withoutLastNewline(chunk.text)}\n`;
    ids.push(file, ...(yield* tokenizer.headSteps(text, limit)));
    chunks++;
  }
  const whole = chunks === context.chunks.length && ids.length <= limit;
  return { ids: [...ids.slice(0, Math.max(limit, 0)), ...end], chunks, cut: !whole && limit < context.maxTokens };
}

/** The context as comments. */
function* commentForm(tokenizer: Tokenizer, context: TextContext, room: number): Generator<void, FittedText> {
  const limit = Math.max(Math.min(context.maxTokens, room), 0);
  const { head, blocks } = commented(context);
  // One token more than fits shows whether anything is cut.
  const ids = yield* tokenizer.headSteps(`${head}${blocks.join('\n')}\n`, limit + 1);
  const whole = ids.length <= limit;
  const kept = ids.slice(0, limit);
  let start = head.length;
  let chunks = 0;
  const length = whole ? Infinity : tokenizer.decode(kept).length;
  for (const block of blocks) {
    if (start >= length) break;
    chunks++;
    start += block.length + 1;
  }
  return { ids: kept, chunks, cut: !whole && limit < context.maxTokens };
}

/** The paper's and Repoformer's form: each chunk as a comment under its path. */
function commented(context: TextContext): { readonly head: string; readonly blocks: readonly string[] } {
  const mark = SLASHES.has(extname(context.path || context.chunks[0]!.path)) ? '//' : '#';
  const blocks = context.chunks.map((chunk) => {
    const lines = withoutLastNewline(chunk.text).split('\n');
    return [`the below code fragment can be found in:`, chunk.path, ...lines]
      .map((line) => `${mark} ${line}\n`)
      .join('');
  });
  return { head: `${mark} Here are some relevant code fragments from other files of the repo:\n\n`, blocks };
}

const withoutLastNewline = (text: string) => (text.endsWith('\n') ? text.slice(0, -1) : text);
