/**
 * One try at one prompt, by the workers of one placement: a prefill call, and a decode call per choice, sent as soon as the
 * prompt has its slot: it pulls the KV while prefill still computes. Knows workers and tokens, not text or clients.
 */

import { Deferred } from '../../lib/async/deferred.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import type { DecodeEvent__Output } from '../../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { KvHandle__Output } from '../../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { PrefillEvent__Output } from '../../lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import { samplingMessage, softTokensMessage } from '../../lib/rpc/messages.ts';
import type { Placement } from '../workers/worker-pool.ts';
import type { WorkerLease } from '../workers/worker-set.ts';

export type FirstTokens = NonNullable<PrefillEvent__Output['first']>;
export type Step = NonNullable<DecodeEvent__Output['step']>;

export interface AttemptRequest {
  readonly requestId: string;
  /** Of the bundle that the token ids belong to. */
  readonly fingerprint: string;
  readonly cacheSalt: string;
  readonly prompt: TokenPrompt;
  /** One per choice. */
  readonly samplings: readonly Sampling[];
  /** Of each choice, the first one included. */
  readonly maxTokens: number;
  /** Alternatives per prompt token to report; -1 for none. */
  readonly promptLogprobs: number;
  /** When the request's budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
  /** A joined sequence that brings no token for so long is lost, in ms. */
  readonly stallTimeoutMs: number;
  /** Told what the workers measured. */
  readonly onAccepted: (accepted: NonNullable<PrefillEvent__Output['accepted']>) => void;
  readonly onFirst: (first: FirstTokens) => void;
  readonly onJoined: (joined: NonNullable<DecodeEvent__Output['joined']>) => void;
}

/** Why a call is cancelled that is no longer needed. */
export const FINISHED = new Error('finished');

export class Leg {
  readonly #request: AttemptRequest;
  readonly #placement: Placement;
  readonly #accepted = new Deferred<KvHandle__Output>();
  readonly #first = new Deferred<FirstTokens>();
  readonly #finished = new AbortController();
  /** Choices that have not taken their copy of the KV yet, and what ends their wait for one that will never come. */
  readonly #waiting: Map<number, AbortController>;
  #prefilling = Promise.resolve();
  readonly #failed = new Set<string>();
  #abandoned = false;
  #hasFirst = false;

  constructor(request: AttemptRequest, placement: Placement) {
    this.#request = request;
    this.#placement = placement;
    this.#waiting = new Map(placement.decodes.map((_, choice) => [choice, new AbortController()]));
  }

  /** Sends the prompt. */
  start(signal: AbortSignal): void {
    this.#prefilling = this.#prefill(signal);
  }

  /** The first token of every choice. Rejects when prefill failed: then nothing of this leg can be used. */
  get first(): Promise<FirstTokens> {
    return this.#first.promise;
  }

  get hasFirst(): boolean {
    return this.#hasFirst;
  }

  /** Addresses of workers that failed: another try had better go to others. */
  get failed(): ReadonlySet<string> {
    return this.#failed;
  }

  /**
   * What follows a choice's first token, to the end.
   * @throws ServingError of the worker, worker_lost, worker_stalled; the signal's reason.
   */
  async *decode(choice: number, signal: AbortSignal): AsyncGenerator<Step, void, undefined> {
    const { requestId, samplings, maxTokens, deadlineMs, stallTimeoutMs, onJoined } = this.#request;
    const worker = this.#placement.decodes[choice]!;
    const stall = new Watchdog(stallTimeoutMs, worker.address);
    const waiting = this.#waiting.get(choice)!.signal;
    const kv = await this.#accepted.promise;
    let [joined, failed] = [false, false];
    try {
      const call = { requestId, kv, choice, sampling: samplingMessage(samplings[choice]!), maxTokens };
      const live = AbortSignal.any([signal, worker.lost, stall.signal, waiting]);
      for await (const event of worker.client.decode(call, live, deadlineMs)) {
        stall.stop();
        if (event.joined) {
          joined = true;
          onJoined(event.joined);
          this.#took(choice);
        }
        if (event.step) yield event.step; // the reader leaves here with the last one
        if (event.step?.finishReason) return;
        stall.start(); // from here on it is the worker that we wait for; before, it was the client
      }
      throw new ServingError('worker_lost', `${worker.address} ended decoding before the end of the text`);
    } catch (error) {
      failed = true;
      if (!signal.aborted && !waiting.aborted) {
        this.#blame(worker, error);
        // Whose fault it is that a KV cache did not come: in the long run, whose others do not come either.
        if (ServingError.from(error).code.startsWith('kv_')) this.#blame(this.#placement.prefill, error);
      }
      throw error;
    } finally {
      if (joined && !failed) worker.succeeded();
      stall.stop();
      if (!joined) this.#abandoned = true;
      this.#took(choice);
      worker.release();
    }
  }

  /** A choice was lost and will not take the KV: when the others have theirs, nobody is left to wait for. */
  abandon(): void {
    this.#abandoned = true;
    this.#settle();
  }

  /** Frees what was not taken, and resolves when the prefill call has ended. To be called whatever happens. */
  async end(): Promise<void> {
    this.#finished.abort(FINISHED);
    await this.#prefilling;
    this.#succeeded();
    for (const worker of [this.#placement.prefill, ...this.#placement.decodes]) worker.release();
  }

  /** Of prefill: its KV was taken, or was not wanted after all. */
  #succeeded(): void {
    const { prefill } = this.#placement;
    if (this.#hasFirst && !this.#failed.has(prefill.address)) prefill.succeeded();
  }

  #blame(worker: WorkerLease<unknown>, error: unknown): void {
    this.#failed.add(worker.address);
    worker.failed(error);
  }

  #took(choice: number): void {
    this.#waiting.delete(choice);
    this.#settle();
  }

  /** Where not all take the KV prefill would wait for them. */
  #settle(): void {
    if (this.#abandoned && this.#hasFirst && this.#waiting.size === 0) this.#finished.abort(FINISHED);
  }

  /** Follows the prefill call to its end. Never throws: a failure reaches the choices through what they wait for. */
  async #prefill(signal: AbortSignal): Promise<void> {
    const { requestId, fingerprint, prompt, samplings, maxTokens, ...request } = this.#request;
    const worker = this.#placement.prefill;
    const live = AbortSignal.any([signal, worker.lost, this.#finished.signal]);
    const call = {
      requestId,
      fingerprint,
      tokenIds: Array.from(prompt.ids),
      soft: softTokensMessage(prompt.soft),
      choices: samplings.map(samplingMessage),
      readers: maxTokens > 1 ? samplings.length : 0,
      promptLogprobs: request.promptLogprobs,
      cacheSalt: request.cacheSalt,
    };
    // What has been resolved stays so: a prefill worker that is lost after its work was done harms those alone that wait
    // for its KV.
    const refuse = (error: unknown) => {
      this.#accepted.reject(error);
      this.#first.reject(error);
    };
    try {
      for await (const { accepted, first, released } of worker.client.prefill(call, live, request.deadlineMs)) {
        if (accepted?.kv) {
          request.onAccepted(accepted);
          worker.started();
          this.#accepted.resolve(accepted.kv);
        }
        if (first) {
          request.onFirst(first);
          this.#hasFirst = true;
          this.#first.resolve(first);
          worker.releaseLoad(); // the next prompt may come
          this.#settle();
        }
        if (released) {
          this.#succeeded();
          break;
        }
      }
      refuse(new ServingError('worker_lost', `${worker.address} ended prefill without a first token`));
    } catch (error) {
      if (!signal.aborted && !this.#finished.signal.aborted) this.#blame(worker, error);
      refuse(error);
      // Their decoders would hear of it late: from a network that says nothing, or when a slot is free.
      for (const waiting of this.#waiting.values()) waiting.abort(error);
    } finally {
      worker.release();
    }
  }
}

/** Aborts its signal when nothing came for a while. */
class Watchdog {
  readonly #controller = new AbortController();
  readonly #timeoutMs: number;
  readonly #address: string;
  #timer: NodeJS.Timeout | undefined;

  constructor(timeoutMs: number, address: string) {
    this.#timeoutMs = timeoutMs;
    this.#address = address;
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  start(): void {
    this.#timer = setTimeout(() => {
      const message = `${this.#address} sent no token for ${this.#timeoutMs} ms (--stall-timeout-ms)`;
      this.#controller.abort(new ServingError('worker_stalled', message));
    }, this.#timeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}
