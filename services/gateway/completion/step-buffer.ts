/**
 * The steps of one sequence that have come from its decode worker and that its reader has not taken yet. The worker is
 * read as fast as it sends, so that it is free the moment its sequence ends, however slowly the client reads.
 *
 * It holds at most the output of one sequence: `max_tokens` tokens, about 200 bytes each, and 100 more for each
 * alternative where logprobs are asked for. A reader that takes nothing for --slow-reader-ms ends its request, so all
 * buffers of a gateway together hold no more than its workers decode within --request-timeout-ms.
 */
import type { DecodeEvent__Output } from '../../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';

export type Step = NonNullable<DecodeEvent__Output['step']>;

export class StepBuffer {
  readonly #onTokens: (count: number) => void;
  #steps: Step[] = [];
  /** Steps of {@link #steps} that were taken. */
  #taken = 0;
  #ended = false;
  #error: unknown;
  #wake: (() => void) | undefined;

  /** @param onTokens told how many tokens have come, whether or not the reader will ever take them. */
  constructor(onTokens: (count: number) => void = () => {}) {
    this.#onTokens = onTokens;
  }

  push(step: Step): void {
    this.#onTokens(step.tokens.length);
    this.#steps.push(step);
    this.#wake?.();
  }

  /** Nothing more comes. @param error is thrown to the reader after the steps that have come. */
  end(error?: unknown): void {
    this.#ended = true;
    this.#error = error;
    this.#wake?.();
  }

  /** The next step, as soon as there is one; undefined after the last. For one reader, which asks one at a time. */
  async take(): Promise<Step | undefined> {
    while (this.#taken === this.#steps.length) {
      this.#steps = [];
      this.#taken = 0;
      if (this.#error !== undefined) throw this.#error;
      if (this.#ended) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#steps[this.#taken++];
  }
}
