/**
 * One attempt at some choices of a prompt, by the workers of one grant: a prefill call, and a decode call per choice. A
 * decode call is sent as soon as the prompt has its slot: it pulls the KV while prefill still computes. An attempt
 * knows workers and tokens, not text or clients.
 */
import { Deferred } from '../../lib/async/deferred.ts';
import { Watchdog } from '../../lib/async/watchdog.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { TraceHeaders } from '../../lib/process/span.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import { type Activity, KV_BYTES } from '../../lib/request/timeline.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { DecodeEvent__Output } from '../../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { Drafts } from '../../lib/rpc/gen/llavacode/v1/Drafts.ts';
import type { KvHandle__Output } from '../../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { PrefillEvent__Output } from '../../lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import type { PrefillRequest } from '../../lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import { samplingMessage, softTokensMessage } from '../../lib/rpc/messages.ts';
import { type Grant, PREEMPTED } from '../admission/queued-prompt.ts';
import { isSharedWithPrefill } from '../workers/blame.ts';
import type { WorkerLease } from '../workers/worker.ts';
import { type Step, StepBuffer } from './step-buffer.ts';

export type FirstTokens = NonNullable<PrefillEvent__Output['first']>;

/** Receives the durations that the workers measured on their own clocks. */
export interface AttemptObserver {
  readonly onAccepted: (accepted: NonNullable<PrefillEvent__Output['accepted']>) => void;
  readonly onFirst: (first: FirstTokens) => void;
  readonly onJoined: (joined: NonNullable<DecodeEvent__Output['joined']>) => void;
}

/** A call to a worker, which the request's timeline has. */
export interface WorkerCall {
  readonly activity: Activity;
  /** The trace that the call belongs to. */
  readonly headers?: TraceHeaders | undefined;
}

export interface AttemptRequest extends AttemptObserver {
  readonly requestId: string;
  /** SHA-256 (hex) of the bundle that the token ids belong to. */
  readonly fingerprint: string;
  readonly cacheSalt: string;
  readonly prompt: TokenPrompt;
  /** One per choice. */
  readonly samplings: readonly Sampling[];
  /** Output tokens of each choice, the first one included. */
  readonly maxTokens: number;
  /** What the output may repeat; undefined without speculation. */
  readonly drafts?: Drafts | undefined;
  /** Alternatives per prompt token to report; -1 for none. */
  readonly promptLogprobs: number;
  /** The first prompt token that is reported then. */
  readonly promptLogprobsFrom: number;
  /** Time at which the request's budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
  /** A joined sequence that brings no token for so long is lost, in ms. */
  readonly stallTimeoutMs: number;
  /**
   * Told of each call to a worker, just before it is made.
   * @param source address of the worker whose KV the called one takes.
   */
  readonly onCall: (name: 'prefill' | 'decode', worker: string, source?: string) => WorkerCall;
  /** Told of the tokens of each choice after the first one as they come, before anybody reads them. */
  readonly onDecoded?: (choice: number, tokens: number) => void;
  /** Told of tokens that were proposed from the client's prediction, when a worker has verified them. */
  readonly onPredicted?: (accepted: number, rejected: number) => void;
}

/** Reason with which a call is aborted that is no longer needed. */
export const FINISHED = new Error('finished');

export class Attempt {
  readonly #request: AttemptRequest;
  readonly #workers: Pick<Grant, 'prefill' | 'decodes'>;
  readonly #accepted = new Deferred<KvHandle__Output>();
  readonly #first = new Deferred<FirstTokens>();
  readonly #finished = new AbortController();
  /** Choices that have not taken their copy of the KV yet, and what ends their wait for one that will never come. */
  readonly #awaitingKv: Map<number, AbortController>;
  #prefilling = Promise.resolve();
  readonly #failedWorkers = new Set<string>();
  /** A choice will never pull its KV, so do not wait for it. */
  #abandoned = false;
  #hasFirst = false;

  constructor(request: AttemptRequest, workers: Pick<Grant, 'prefill' | 'decodes'>) {
    this.#request = request;
    this.#workers = workers;
    this.#awaitingKv = new Map(workers.decodes.map((_, choice) => [choice, new AbortController()]));
  }

  /** Sends the prompt. */
  start(signal: AbortSignal): void {
    this.#prefilling = this.#prefill(signal);
  }

  /** The first token of every choice. Rejects when prefill failed: then nothing of this attempt can be used. */
  get first(): Promise<FirstTokens> {
    return this.#first.promise;
  }

  get hasFirst(): boolean {
    return this.#hasFirst;
  }

  /** Addresses of workers that failed: the next attempt should go to others. */
  get failedWorkers(): ReadonlySet<string> {
    return this.#failedWorkers;
  }

  /**
   * The tokens after a choice's first one, to the end. The call begins at once and goes on at the worker's own speed:
   * what the reader has not taken waits in a buffer. Leaving the loop ends the call.
   * @throws ServingError of the worker, worker_lost, worker_stalled; PREEMPTED; the signal's reason. Steps that came
   *   before are read first.
   */
  decode(choice: number, signal: AbortSignal): AsyncGenerator<Step, void, undefined> {
    const steps = new StepBuffer((tokens) => this.#request.onDecoded?.(choice, tokens));
    const left = new AbortController();
    const reading = this.#readSteps(choice, AbortSignal.any([signal, left.signal]), steps);
    const leave = () => {
      left.abort(FINISHED);
      return reading;
    };
    return takeAll(steps, leave);
  }

  /** Reads a decode call to its end, and gives its worker back then. Never rejects: failures go to the reader. */
  async #readSteps(choice: number, signal: AbortSignal, steps: StepBuffer): Promise<void> {
    try {
      await this.#decodeCall(choice, signal, steps);
      steps.end();
    } catch (error) {
      steps.end(error);
    } finally {
      if (this.#awaitingKv.has(choice)) this.#abandoned = true;
      this.#noLongerAwaitsKv(choice);
      this.#workers.decodes[choice]!.release();
    }
  }

  async #decodeCall(choice: number, signal: AbortSignal, steps: StepBuffer): Promise<void> {
    const { requestId, samplings, maxTokens, drafts, deadlineMs, onJoined } = this.#request;
    const worker = this.#workers.decodes[choice]!;
    const stall = this.#stallOf(worker);
    const unwanted = AbortSignal.any([signal, worker.preempted, this.#awaitingKv.get(choice)!.signal]);
    const live = AbortSignal.any([unwanted, worker.lost, stall.signal]);
    // A sequence that makes way, or whose reader leaves, does not keep its slot until prefill takes the prompt.
    const kv = await unlessAborted(this.#accepted.promise, live);
    const call = { requestId, kv, choice, sampling: samplingMessage(samplings[choice]!), maxTokens, drafts };
    let tokens = 1; // the first one comes from prefill
    const { activity, headers } = this.#request.onCall('decode', worker.address, this.#workers.prefill.address);
    try {
      for await (const { joined, step } of worker.client.decode(call, live, deadlineMs, headers)) {
        stall.start();
        if (joined) {
          activity.mark('joined', { [KV_BYTES]: joined.handoffBytes });
          onJoined(joined);
          worker.started();
          this.#noLongerAwaitsKv(choice);
        }
        if (!step) continue;
        if (tokens === 1) activity.mark('first_step');
        steps.push(step);
        const { acceptedPredicted, rejectedPredicted } = step;
        if (acceptedPredicted + rejectedPredicted > 0)
          this.#request.onPredicted?.(acceptedPredicted, rejectedPredicted);
        tokens += step.tokens.length;
        // A worker that sends more than it was asked for fills no memory here.
        if (step.finishReason || tokens >= maxTokens) return worker.reportSuccess();
      }
      throw new ServingError('worker_lost', `${worker.address} ended decoding before the end of the text`);
    } catch (error) {
      activity.end(endOf(error));
      if (!unwanted.aborted) {
        this.#failed(worker, error);
        if (isSharedWithPrefill(ServingError.from(error))) this.#failed(this.#workers.prefill, error);
      } else if (error === FINISHED && tokens > 1) worker.reportSuccess();
      throw error;
    } finally {
      stall.stop();
      activity.end();
    }
  }

  /** A choice was lost and will not take the KV: when the others have theirs, prefill need not wait any more. */
  abandon(): void {
    this.#abandoned = true;
    this.#endIdlePrefill();
  }

  /** Frees what was not taken, and resolves when the prefill call has ended. To be called whatever happens. */
  async end(): Promise<void> {
    this.#finished.abort(FINISHED);
    await this.#prefilling;
    this.#prefillSucceeded();
    for (const worker of [this.#workers.prefill, ...this.#workers.decodes]) worker.release();
  }

  #stallOf({ address }: WorkerLease<unknown>): Watchdog {
    const { stallTimeoutMs } = this.#request;
    return new Watchdog(stallTimeoutMs, () => {
      const message = `${address} sent no token for ${stallTimeoutMs} ms (--stall-timeout-ms)`;
      return new ServingError('worker_stalled', message);
    });
  }

  /** Reports success of the prefill worker: its KV was taken, or was not needed after all. */
  #prefillSucceeded(): void {
    const { prefill } = this.#workers;
    if (this.#hasFirst && !this.#failedWorkers.has(prefill.address)) prefill.reportSuccess();
  }

  #failed(worker: WorkerLease<unknown>, error: unknown): void {
    this.#failedWorkers.add(worker.address);
    worker.reportFailure(error);
  }

  #noLongerAwaitsKv(choice: number): void {
    this.#awaitingKv.delete(choice);
    this.#endIdlePrefill();
  }

  /** Prefill holds the KV until all choices have taken it: where some never will, the call is ended here. */
  #endIdlePrefill(): void {
    if (this.#abandoned && this.#hasFirst && this.#awaitingKv.size === 0) this.#finished.abort(FINISHED);
  }

  #prefillCall(): PrefillRequest {
    const { requestId, fingerprint, prompt, samplings, maxTokens, cacheSalt } = this.#request;
    const { promptLogprobs, promptLogprobsFrom } = this.#request;
    return {
      requestId,
      fingerprint,
      tokenIds: Array.from(prompt.ids),
      soft: softTokensMessage(prompt.soft),
      choices: samplings.map(samplingMessage),
      readers: maxTokens > 1 ? samplings.length : 0,
      promptLogprobs,
      promptLogprobsFrom,
      cacheSalt,
    };
  }

  /**
   * Follows the prefill call to its end. It never throws: a failure reaches the choices through what they wait for. A
   * promise that has resolved stays resolved: losing the prefill worker after its work was done affects only the
   * choices that still wait for its KV.
   */
  async #prefill(signal: AbortSignal): Promise<void> {
    const { onAccepted, onFirst, deadlineMs } = this.#request;
    const worker = this.#workers.prefill;
    const live = AbortSignal.any([signal, worker.lost, this.#finished.signal]);
    const reject = (error: unknown) => {
      this.#accepted.reject(error);
      this.#first.reject(error);
    };
    const { activity, headers } = this.#request.onCall('prefill', worker.address);
    try {
      const call = worker.client.prefill(this.#prefillCall(), live, deadlineMs, headers);
      for await (const { accepted, first, released } of call) {
        if (accepted?.kv) {
          activity.mark('accepted');
          onAccepted(accepted);
          worker.started();
          this.#accepted.resolve(accepted.kv);
        }
        if (first) {
          activity.mark('first_token', { 'llavacode.reused_tokens': first.cachedTokens });
          activity.end(); // what follows is the hand-over, which decode waits for
          onFirst(first);
          this.#hasFirst = true;
          this.#first.resolve(first);
          worker.releaseLoad(); // the next prompt may come
          this.#endIdlePrefill();
        }
        if (released) {
          this.#prefillSucceeded();
          break;
        }
      }
      reject(new ServingError('worker_lost', `${worker.address} ended prefill without a first token`));
    } catch (error) {
      activity.end(endOf(error));
      if (!signal.aborted && !this.#finished.signal.aborted) this.#failed(worker, error);
      reject(error);
      // Abort the decoders now: a silent network or a slot queue would delay the news.
      for (const kvLost of this.#awaitingKv.values()) kvLost.abort(error);
    } finally {
      activity.end();
      worker.release();
    }
  }
}

/** How a call ended, for the timeline: the code of its error; undefined where it was only not needed any more. */
function endOf(error: unknown): string | undefined {
  if (error === FINISHED) return undefined;
  return error === PREEMPTED ? 'preempted' : ServingError.from(error).code;
}

/** Waits for a promise. Rejects with the signal's reason when that is aborted first. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = new Deferred<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** @param leave is called when the reader leaves, at the end or before. */
async function* takeAll(steps: StepBuffer, leave: () => Promise<void>): AsyncGenerator<Step, void, undefined> {
  try {
    for (let step = await steps.take(); step !== undefined; step = await steps.take()) yield step;
  } finally {
    await leave();
  }
}
