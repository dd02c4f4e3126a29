/** Readiness of the gateway: not that its parts are up, but that a completion has come all the way through them. */
import { Deferred } from '../lib/async/deferred.ts';
import { repeatUntilAborted } from '../lib/async/repeat.ts';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { Journey } from './completion/journey.ts';
import { RequestRecord } from './completion/request-record.ts';
import { COMPLETION_DEFAULTS, type CompletionRequest, TRIAL_TENANT } from './request.ts';

export interface ReadinessOptions {
  /** Whether there are workers to place a completion on. */
  readonly usable: () => boolean;
  /** Completes a few tokens on real workers. */
  readonly generate: () => Promise<unknown>;
  readonly draining: AbortSignal;
  readonly log: Logger;
}

/** Pause between two checks while a generation is still to succeed, in ms. */
const CHECK_EVERY_MS = 200;
/** And afterwards, when a check only asks whether workers were lost. */
const LOOK_EVERY_MS = 1_000;

export class Readiness {
  readonly #options: ReadinessOptions;
  #proven = false;
  #problem = 'no prefill and decode worker has answered yet';
  readonly #first = new Deferred<void>();

  constructor(options: ReadinessOptions) {
    this.#options = options;
  }

  /** Resolves when a generation has succeeded for the first time. */
  get first(): Promise<void> {
    return this.#first.promise;
  }

  /** Reason why completions would fail now; undefined when they would not. */
  get problem(): string | undefined {
    if (this.#options.draining.aborted) return 'shutting down';
    if (!this.#options.usable()) return 'no worker of this bundle is left';
    return this.#proven ? undefined : this.#problem;
  }

  /** Generates, unless a generation has succeeded since workers were last lost. */
  async check(): Promise<void> {
    const { usable, generate, log } = this.#options;
    if (!usable()) this.#proven = false;
    else if (!this.#proven) {
      try {
        await generate();
        this.#proven = true;
        this.#first.resolve();
      } catch (error) {
        const failure = ServingError.from(error);
        if (failure.message !== this.#problem) log.warn({ err: failure }, 'trial generation failed');
        this.#problem = failure.message;
      }
    }
  }

  /** Checks again and again until `closing` is aborted. */
  async watch(closing: AbortSignal): Promise<void> {
    await repeatUntilAborted(closing, async () => {
      await this.check();
      return this.#proven ? LOOK_EVERY_MS : CHECK_EVERY_MS;
    });
  }
}

/** Length of the trial prompt: enough for a prefill worker to learn how fast it computes, which admission relies on. */
const TRIAL_TOKENS = 128;
const TRIAL_OUTPUT_TOKENS = 3;

export interface Trial {
  readonly journey: Pick<Journey, 'complete'>;
  /** Token id that the trial prompt repeats. */
  readonly tokenId: number;
  /** Positions of one slot. */
  readonly capacity: number;
  readonly timeoutMs: number;
  readonly closing: AbortSignal;
}

/**
 * Completes a few tokens, by both kinds of workers.
 * @throws whatever keeps a completion from succeeding.
 */
export async function tryOut({ journey, tokenId, capacity, timeoutMs, closing }: Trial): Promise<void> {
  const length = Math.min(TRIAL_TOKENS, capacity - TRIAL_OUTPUT_TOKENS);
  const request: CompletionRequest = {
    ...COMPLETION_DEFAULTS,
    prompts: [Array<number>(length).fill(tokenId)],
    maxTokens: TRIAL_OUTPUT_TOKENS,
    ignoreEos: true,
    sampling: { ...COMPLETION_DEFAULTS.sampling, temperature: 0 },
  };
  await journey.complete(request, {
    id: 'readiness',
    tenant: TRIAL_TENANT,
    record: new RequestRecord(),
    signal: AbortSignal.any([AbortSignal.timeout(timeoutMs), closing]),
    deadlineMs: performance.now() + timeoutMs,
    emit: () => {},
  });
}
