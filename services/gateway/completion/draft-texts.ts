/**
 * What the output of a prompt may repeat: the text of chunks that stand in it as soft tokens, what the same session or
 * tenant was given lately, the client's own prediction, the prompt. Decode workers propose tokens from these texts and
 * verify them, so they change how fast tokens come, and never which.
 *
 * Texts of one tenant, or of one cache salt, are never used for another: how fast tokens come would tell of them.
 */
import { TenantCache } from '../../lib/rag/store/tenant-cache.ts';
import type { Drafts } from '../../lib/rpc/gen/llavacode/v1/Drafts.ts';
import { formOf, type PromptFormat } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import { hashOf, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest } from '../request.ts';
import type { CompletionConfig } from './settings.ts';

export interface DraftTextsParts extends Pick<CompletionConfig, 'promptOrder' | 'speculation'> {
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
}

/** Tokens of what is sent of each kind: a worker looks through 16,384 in all. */
const PROMPT_TOKENS = 6_144;
const PREDICTION_TOKENS = 4_096;
const CHUNK_TOKENS = 4_096;
/** Outputs that are remembered of a session, and tokens of each. */
const OUTPUTS = 4;
const OUTPUT_TOKENS = 256;
/** Size of all outputs that are remembered: those of 10,000 sessions. */
const LIMIT_BYTES = 16 << 20;
const TOKEN_BYTES = 8;
/** Time for which they are, in ms: what somebody works on now. */
const KEEP_MS = 600_000;

/** Texts beside the prompt. */
interface Beside {
  readonly tenant: string;
  /** Texts of the chunks that stand in the prompt as soft tokens, the best first. */
  readonly chunks: readonly string[];
}

export class DraftTexts {
  readonly #parts: DraftTextsParts;
  readonly #outputs = new TenantCache<readonly (readonly number[])[]>(LIMIT_BYTES, KEEP_MS);

  constructor(parts: DraftTextsParts) {
    this.#parts = parts;
  }

  /**
   * The texts for one prompt, the best last; undefined without speculation. It yields between two words.
   * @param prompt ids of the prompt.
   */
  *of(request: CompletionRequest, prompt: Int32Array, { tenant, chunks }: Beside): Generator<void, Drafts | undefined> {
    const { speculation, tokenizer } = this.#parts;
    if (speculation === 'off') return undefined;
    const texts = (this.#outputs.get(keyOf(request, tenant)) ?? []).map((ids) => ({ source: 'recent', ids }));
    const best: number[][] = [];
    let room = CHUNK_TOKENS;
    for (const text of chunks) {
      if (room <= 0) break;
      const ids = yield* tokenizer.headSteps(text, room);
      room -= ids.length;
      best.unshift(ids);
    }
    texts.push(...best.map((ids) => ({ source: 'chunk', ids })));
    const cursor = this.#cursorOf(request, prompt);
    texts.push({ source: 'prompt', ids: [...prompt.subarray(cursor).slice(0, PROMPT_TOKENS)] });
    if (request.prediction !== undefined) {
      texts.push({ source: 'prediction', ids: yield* tokenizer.headSteps(request.prediction, PREDICTION_TOKENS) });
    }
    return {
      texts: texts.map(({ source, ids }) => ({ source, tokenIds: [...ids] })),
      before: [...prompt.subarray(0, cursor).slice(-PROMPT_TOKENS)],
    };
  }

  /** The output of a request, for the next ones of its session or, where it has none, of its tenant. */
  remember(request: CompletionRequest, tenant: string, output: readonly number[]): void {
    if (this.#parts.speculation === 'off' || output.length < 2) return;
    const key = keyOf(request, tenant);
    const outputs = [output.slice(0, OUTPUT_TOKENS), ...(this.#outputs.peek(key) ?? [])].slice(0, OUTPUTS);
    this.#outputs.set(key, outputs, 256 + outputs.reduce((sum, { length }) => sum + length * TOKEN_BYTES, 0));
  }

  /** Where the text before the output ends: in fill-in-the-middle at the cursor, else at the end. */
  #cursorOf({ suffix }: CompletionRequest, prompt: Int32Array): number {
    const form = suffix === undefined ? [] : (formOf(this.#parts.format, this.#parts.promptOrder) ?? []);
    const next = form[form.indexOf('left') + 1];
    const cursor = typeof next === 'number' ? prompt.lastIndexOf(next) : -1;
    return cursor < 0 ? prompt.length : cursor;
  }
}

/** A key begins with its tenant, who has a share of the memory. */
const keyOf = (request: CompletionRequest, tenant: string) =>
  sessionOf(request, tenant) ?? `${tenant}:${hashOf([tenant, request.cacheSalt ?? null, 'drafts'])}`;
