/**
 * The spans of one sequence in its decode worker: it waits for a slot, its KV is handed over, and it takes part in the
 * steps of the batch.
 */
import type { Span, TraceHeaders } from '../lib/process/span.ts';
import { beginTrace } from '../lib/process/tracing.ts';
import type { AcquiredKv } from './kv-source.ts';

export class DecodeTrace {
  readonly #root: Span;
  readonly #beganMs: number;
  #steps: Span | undefined;
  #tokens = 0;

  /** @returns undefined where traces are off. */
  static begin(caller: TraceHeaders, choice: number): DecodeTrace | undefined {
    const atMs = performance.now();
    const root = beginTrace('decode', caller, { kind: 'server', atMs, attributes: { 'llavacode.choice': choice } });
    return root && new DecodeTrace(root, atMs);
  }

  private constructor(root: Span, beganMs: number) {
    this.#root = root;
    this.#beganMs = beganMs;
  }

  get traceId(): string {
    return this.#root.traceId;
  }

  /** Headers of the calls that bring its KV. */
  get headers(): TraceHeaders {
    return this.#root.headers;
  }

  /** The KV is in the slot. The durations are those that the source has measured. */
  joined({ queueSeconds, seconds, exposedSeconds, bytes }: Omit<AcquiredKv, 'slot'>): void {
    const atMs = performance.now();
    const pulledMs = Math.max(atMs - seconds * 1000, this.#beganMs);
    const grantedMs = Math.min(this.#beganMs + queueSeconds * 1000, pulledMs);
    this.#root.begin('queue', { atMs: this.#beganMs }).end(grantedMs);
    const attributes = { 'llavacode.kv.bytes': bytes, 'llavacode.kv.exposed_seconds': exposedSeconds };
    this.#root.begin('hand-over', { atMs: pulledMs, attributes }).end(atMs);
    this.#steps = this.#root.begin('steps', { atMs });
  }

  /** @param tokens decoded so far. */
  step(tokens: number): void {
    if (this.#tokens === 0) this.#steps?.event('first_step', performance.now());
    this.#tokens = tokens;
  }

  end(atMs: number, error?: string): void {
    this.#root.set({ 'gen_ai.usage.output_tokens': this.#tokens });
    this.#steps?.end(atMs, error);
    this.#root.end(atMs, error);
  }
}
