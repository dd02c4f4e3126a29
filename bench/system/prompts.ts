/**
 * Makes prompts of an exact number of tokens from a real repository. Each has a cursor in one of the files: the code
 * after the cursor is the suffix, and the code before it fills the length. Other files come before a file that is too
 * short.
 */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { globby } from 'globby';
import type { CompletionBody } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { choosePromptFormat, type PromptFormat } from '../../services/lib/text/prompt-format.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { TRACE_BLOCK_TOKENS } from '../measure/trace.ts';
import { type ContextMode, MIXED_TEXTS, SOFT_TOKENS } from './context.ts';

interface PromptShape {
  /** Tokens of the whole prompt, including its context. */
  readonly tokens: number;
  readonly context: ContextMode;
  /** Tokens of the context: those of its text, or one per chunk. */
  readonly contextTokens: number;
}

type PromptBody = Pick<CompletionBody, 'prompt' | 'suffix' | 'rag' | 'cache_salt'>;

/** Lines between two cursors: a prime number, so that cursors do not keep step with the borders of chunks. */
const CURSOR_STRIDE = 7;
/** Lines before the first cursor of a file: the query is made of them. */
const FIRST_CURSOR = 15;
/** Upper bound on the tokens after the cursor, which are a quarter of the code around it at most. */
const SUFFIX_TOKENS = 256;

interface SourceFile {
  readonly path: string;
  readonly text: string;
}

interface Cursor {
  readonly path: string;
  readonly before: string;
  readonly after: string;
}

export class PromptMaker {
  readonly #repo: string;
  readonly #tokenizer: Tokenizer;
  readonly #format: PromptFormat;
  readonly #cursors: readonly Cursor[];
  /** Token ids of the whole repository, which fill prompts up. */
  readonly #filling: readonly number[];

  private constructor(repo: string, tokenizer: Tokenizer, files: readonly SourceFile[]) {
    this.#repo = repo;
    this.#tokenizer = tokenizer;
    this.#format = choosePromptFormat(tokenizer);
    this.#cursors = files.flatMap(cursorsOf);
    this.#filling = tokenizer.encode(files.map(({ text }) => text).join('\n'));
    if (this.#cursors.length === 0) {
      throw new ServingError(
        'invalid_request',
        `${repo} has no Python file of more than ${FIRST_CURSOR} lines: give a --path that has`,
      );
    }
  }

  /** @param dir folder of the repository; every `.py` file in it is used. */
  static async load(repo: string, dir: string, tokenizer: Tokenizer): Promise<PromptMaker> {
    const paths = (await globby('**/*.py', { cwd: dir })).sort();
    const files = await Promise.all(
      paths.map(async (path) => ({ path, text: await readFile(join(dir, path), 'utf8') })),
    );
    return new PromptMaker(repo, tokenizer, files);
  }

  /**
   * Makes a request whose prompt has exactly `shape.tokens` tokens. Its salt is new, so no cached prefix matches it.
   * @param index chooses the cursor: equal indices give equal cursors, and the prompts of neighbours begin differently.
   */
  make(index: number, { tokens, context, contextTokens }: PromptShape): PromptBody {
    const cursor = this.#cursors[(index * 31) % this.#cursors.length]!;
    const code = tokens - (context === 'off' ? 0 : contextTokens);
    const right = this.#tokenizer.encodeHead(cursor.after, Math.min(SUFFIX_TOKENS, Math.floor(code / 4)));
    const suffix = this.#tokenizer.decode(right);
    const frame = this.#format.frame;
    const frameTokens =
      this.#tokenizer.leadingIds.length + (frame ? frame.length + this.#tokenizer.encode(suffix).length : 0);
    const left = code - frameTokens;
    if (left < 1)
      throw new ServingError(
        'invalid_request',
        `a prompt of ${tokens} tokens leaves none before the cursor: ask for a longer prompt`,
      );
    const rag = this.#rag(cursor, context, contextTokens);
    return { prompt: this.#left(cursor, left, index), suffix, ...(rag && { rag }), cache_salt: randomUUID() };
  }

  /** Makes a prompt of `tokens` tokens, 512 for each block of a trace. Equal blocks give equal tokens. */
  blocks(blocks: readonly number[], tokens: number): number[] {
    return Array.from({ length: tokens }, (_, i) => {
      const block = blocks[Math.floor(i / TRACE_BLOCK_TOKENS)] ?? 0;
      return this.#filling[(block * 997 + (i % TRACE_BLOCK_TOKENS)) % this.#filling.length]!;
    });
  }

  #left({ before }: Cursor, tokens: number, index: number): number[] {
    const own = this.#tokenizer.encodeTail(before, tokens);
    const start = (index * 997) % this.#filling.length;
    const filler = Array.from(
      { length: tokens - own.length },
      (_, i) => this.#filling[(start + i) % this.#filling.length]!,
    );
    return [...filler, ...own];
  }

  #rag({ path }: Cursor, context: ContextMode, contextTokens: number): CompletionBody['rag'] {
    if (context === 'off') return undefined;
    const rag = { repo: this.#repo, path, mode: context };
    if (context === 'compressed') return { ...rag, top_k: contextTokens };
    // The name of the current file follows the context, and its tokens are not part of the limit.
    const after = this.#format.repository ? 1 + this.#tokenizer.encode(`${path}\n`).length : 0;
    const textTokens = contextTokens - after;
    if (context === 'text') return { ...rag, top_k: 10, max_text_tokens: textTokens };
    const softTokens = SOFT_TOKENS - MIXED_TEXTS;
    return { ...rag, top_k: SOFT_TOKENS, text_chunks: MIXED_TEXTS, max_text_tokens: textTokens - softTokens };
  }
}

function cursorsOf({ path, text }: SourceFile): Cursor[] {
  const lines = text.split('\n');
  const cursors: Cursor[] = [];
  for (let line = FIRST_CURSOR; line < lines.length - 1; line += CURSOR_STRIDE) {
    const before = `${lines.slice(0, line).join('\n')}\n`;
    cursors.push({ path, before, after: `\n${lines.slice(line + 1).join('\n')}` });
  }
  return cursors;
}
