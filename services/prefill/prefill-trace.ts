/**
 * The spans of one prompt in its prefill worker: it waits for a slot, is computed chunk by chunk, and its KV is staged
 * until the last decoder has its copy.
 */
import type { Span, TraceHeaders } from '../lib/process/span.ts';
import { beginTrace } from '../lib/process/tracing.ts';
import type { PrefillResult } from './prompt-computation.ts';

export class PrefillTrace {
  readonly #root: Span;
  /** The part that runs now: `queue`, then `compute`, then `staged`. */
  #part: Span;

  /** @returns undefined where traces are off. */
  static begin(caller: TraceHeaders, promptTokens: number): PrefillTrace | undefined {
    const atMs = performance.now();
    const attributes = { 'gen_ai.usage.input_tokens': promptTokens };
    const root = beginTrace('prefill', caller, { kind: 'server', atMs, attributes });
    return root && new PrefillTrace(root, atMs);
  }

  private constructor(root: Span, atMs: number) {
    this.#root = root;
    this.#part = root.begin('queue', { atMs });
  }

  get traceId(): string {
    return this.#root.traceId;
  }

  accepted(): void {
    this.#next('compute');
  }

  /** A chunk is in the slot. @param from position of its first token. @param to position after its last one. */
  chunk(from: number, to: number): void {
    this.#part.event('chunk', performance.now(), { 'llavacode.chunk.from': from, 'llavacode.chunk.to': to });
  }

  /** KV was read from disk. @param positions that the slot holds now. */
  restored(positions: number): void {
    this.#part.event('restored', performance.now(), { 'llavacode.positions': positions });
  }

  computed({ cachedTokens, chunks }: Pick<PrefillResult, 'cachedTokens' | 'chunks'>): void {
    this.#root.set({ 'gen_ai.usage.cache_read.input_tokens': cachedTokens, 'llavacode.chunks': chunks });
    this.#next('staged');
  }

  end(atMs: number, error?: string): void {
    this.#part.end(atMs, error);
    this.#root.end(atMs, error);
  }

  #next(name: string): void {
    const atMs = performance.now();
    this.#part.end(atMs);
    this.#part = this.#root.begin(name, { atMs });
  }
}
