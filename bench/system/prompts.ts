/**
 * Prompts of an exact number of tokens from a real repository: a cursor in one of its files, what follows it as the
 * suffix, and as much of what precedes it as the length asks for (other files stand before a file that is too short).
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

export type ContextMode = 'compressed' | 'text' | 'off';

export interface PromptShape {
  /** Tokens of the whole prompt, context included. */
  readonly tokens: number;
  readonly context: ContextMode;
  /** Tokens that the context takes: of its text, or one per chunk. */
  readonly contextTokens: number;
}

/** Soft tokens of a compressed context: one per chunk. */
export const SOFT_TOKENS = 10;

export type PromptBody = Pick<CompletionBody, 'prompt' | 'suffix' | 'rag' | 'cache_salt'>;

/** Lines between two cursors; a prime, so that cursors of different files do not fall in step with chunks. */
const CURSOR_STRIDE = 7;
/** Lines that a file has before its first cursor: the query is made of them. */
const FIRST_CURSOR = 15;
/** At most a quarter of the code around the cursor. */
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
  /** The whole repository, for what stands before a file. */
  readonly #filling: readonly number[];

  private constructor(repo: string, tokenizer: Tokenizer, files: readonly SourceFile[]) {
    this.#repo = repo;
    this.#tokenizer = tokenizer;
    this.#format = choosePromptFormat(tokenizer);
    this.#cursors = files.flatMap(cursorsOf);
    this.#filling = tokenizer.encode(files.map(({ text }) => text).join('\n'));
    if (this.#cursors.length === 0) {
      throw new ServingError('invalid_request', `${repo} has no Python file of more than ${FIRST_CURSOR} lines`);
    }
  }

  /** @param dir the repository, of which every `.py` file is taken. */
  static async load(repo: string, dir: string, tokenizer: Tokenizer): Promise<PromptMaker> {
    const paths = (await globby('**/*.py', { cwd: dir })).sort();
    const files = await Promise.all(
      paths.map(async (path) => ({ path, text: await readFile(join(dir, path), 'utf8') })),
    );
    return new PromptMaker(repo, tokenizer, files);
  }

  /**
   * A request whose prompt has exactly `shape.tokens` tokens, and finds nothing of it computed already.
   * @param index which cursor: equal indices are equal cursors; neighbours have nothing in common at their beginnings.
   */
  make(index: number, { tokens, context, contextTokens }: PromptShape): PromptBody {
    const cursor = this.#cursors[(index * 31) % this.#cursors.length]!;
    const code = tokens - (context === 'off' ? 0 : contextTokens);
    const right = this.#tokenizer.encodeHead(cursor.after, Math.min(SUFFIX_TOKENS, Math.floor(code / 4)));
    const suffix = this.#tokenizer.decode(right);
    const frame = this.#format.frame;
    const around =
      this.#tokenizer.leadingIds.length + (frame ? frame.length + this.#tokenizer.encode(suffix).length : 0);
    const left = code - around;
    if (left < 1)
      throw new ServingError('invalid_request', `a prompt of ${tokens} tokens leaves none before the cursor`);
    const rag = this.#rag(cursor, context, contextTokens);
    return { prompt: this.#left(cursor, left, index), suffix, ...(rag && { rag }), cache_salt: randomUUID() };
  }

  /** A prompt of `tokens` tokens, 512 per block of a trace: equal blocks are equal tokens. */
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
    // The name of the current file follows the context and is not cut with it.
    const after = this.#format.repository ? 1 + this.#tokenizer.encode(`${path}\n`).length : 0;
    return { ...rag, top_k: 10, max_text_tokens: contextTokens - after };
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
