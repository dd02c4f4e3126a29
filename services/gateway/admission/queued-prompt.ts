/** A prompt in the queue: its sequences wait for workers, and are granted them in one go or a few at a time. */
import { Deferred } from '../../lib/async/deferred.ts';
import type { DecodeClient, PrefillClient } from '../../lib/rpc/contract.ts';
import type { WorkerLease } from '../workers/worker.ts';
import { type PlacementRequest, tokensToCompute } from '../workers/worker-pool.ts';
import type { Waiting } from './fair-queue.ts';

/** One prompt asks for workers. */
export interface QueueRequest extends PlacementRequest {
  readonly tenant: string;
  /** A prompt with a lower value goes sooner, among the same tenant's. */
  readonly priority: number;
  /** Choices that want workers. */
  readonly choices: number;
  /** Time that is left of the request's budget, in ms. */
  readonly remainingMs: number;
  /** Another prompt of the same request was admitted before it: it may wait as long as the request may. */
  readonly sibling?: boolean;
  /**
   * When it entered the queue for the first time, by the dispatcher's clock, if it was admitted before and comes back:
   * it keeps its place and is charged nothing. See {@link Grant.enteredMs}.
   */
  readonly enteredMs?: number | undefined;
  /** Its worker was lost: it goes before all that wait, and waits longer for a worker to come up. */
  readonly isReplay: boolean;
}

/** A decode worker, until `release`. */
export interface DecodeLease extends WorkerLease<DecodeClient> {
  /** Aborted with {@link PREEMPTED} when the sequence has to make way for another tenant's. */
  readonly preempted: AbortSignal;
}

/** Reason with which the call of a sequence is aborted that makes way: it comes back to the queue. */
export const PREEMPTED = new Error('preempted');

/** Workers for some choices of a prompt. The caller releases them. */
export interface Grant {
  readonly prefill: WorkerLease<PrefillClient>;
  /** One per choice; empty where choices end with their first token. */
  readonly decodes: readonly DecodeLease[];
  /** Choices that it is for. */
  readonly choices: number;
  /** To be given back with a choice that comes back. */
  readonly enteredMs: number;
  /**
   * Tokens of the prompt that were cached, or of the output of these choices that will never come: the tenant is not
   * charged for what nobody computes. No more is given back than was charged.
   */
  readonly giveBack: (part: 'prompt' | 'output', tokens: number) => void;
  /** The grant for the choices after these; undefined where there are none. It must be awaited, whatever happens. */
  readonly next: Promise<Grant> | undefined;
}

export class QueuedPrompt implements Waiting {
  readonly tenant: string;
  readonly priority: number;
  readonly tokens: number;
  readonly queuedAtMs: number;
  readonly cameBack: boolean;
  readonly isReplay: boolean;
  readonly sequenceCost: number;
  pendingTokens: number;
  sequences: number;
  /** Since when it waits now, by the dispatcher's clock. */
  readonly waitsSinceMs: number;
  /** Since when it is first in line and finds slots taken by others that have more than their share. */
  blockedSinceMs: number | undefined;
  /** When another gateway was last to make way for it, by the dispatcher's clock; undefined since it got a slot. */
  owedMs: number | undefined;
  readonly #request: QueueRequest;
  #affinity: Pick<PlacementRequest, 'affinityWorker' | 'affinityTokens'>;
  #waiting = new Deferred<Grant>();
  /** Tokens of the prompt that are charged with its first grant. */
  #chargedTokens: number;
  readonly #onSettled: () => void;
  readonly #onGivenBack: (tokens: number) => void;

  /**
   * @param onSettled called when nothing of it waits any more.
   * @param onGivenBack takes tokens that the tenant was charged for and nobody computes.
   */
  constructor(request: QueueRequest, nowMs: number, onSettled: () => void, onGivenBack: (tokens: number) => void) {
    const { promptTokens, positions, continues, choices, enteredMs } = request;
    this.#request = request;
    this.#affinity = request;
    this.#onSettled = onSettled;
    this.#onGivenBack = onGivenBack;
    this.tenant = request.tenant;
    this.priority = request.priority;
    this.tokens = promptTokens;
    this.queuedAtMs = enteredMs ?? nowMs;
    this.waitsSinceMs = nowMs;
    this.cameBack = enteredMs !== undefined;
    this.isReplay = request.isReplay;
    this.sequences = continues ? choices : 1;
    const isNew = !this.cameBack && !this.isReplay;
    this.pendingTokens = isNew || this.isReplay ? promptTokens : 0;
    this.#chargedTokens = isNew ? promptTokens : 0;
    this.sequenceCost = isNew && continues ? positions - promptTokens : 0;
  }

  /** Its needs; the worker that computed its first sequences has most of the prompt. */
  get needs(): PlacementRequest {
    return { ...this.#request, ...this.#affinity };
  }

  get continues(): boolean {
    return this.#request.continues;
  }

  get remainingMs(): number {
    return this.#request.remainingMs;
  }

  get sibling(): boolean {
    return this.#request.sibling === true;
  }

  /** Prompt tokens that would have to be computed now. */
  get tokensToCompute(): number {
    return tokensToCompute(this.needs);
  }

  /** Whether it, or a part of it, was let in before: its client may have had output. */
  get wasServed(): boolean {
    return this.isReplay || this.cameBack || this.pendingTokens === 0;
  }

  /** The grant for its first choices. */
  get first(): Promise<Grant> {
    return this.#waiting.promise;
  }

  grant(prefill: Grant['prefill'], decodes: readonly DecodeLease[]): void {
    const waiting = this.#waiting;
    const isLast = this.sequences === 0;
    if (isLast) this.#onSettled();
    else this.#waiting = new Deferred();
    this.#affinity = { affinityWorker: prefill.address, affinityTokens: this.tokens };
    this.blockedSinceMs = undefined;
    const charged = { prompt: this.#chargedTokens, output: decodes.length * this.sequenceCost };
    this.#chargedTokens = 0;
    waiting.resolve({
      prefill,
      decodes,
      choices: this.continues ? decodes.length : this.#request.choices,
      enteredMs: this.queuedAtMs,
      giveBack: (part, tokens) => {
        const given = Math.min(tokens, charged[part]);
        charged[part] -= given;
        if (given > 0) this.#onGivenBack(given);
      },
      next: isLast ? undefined : this.#waiting.promise,
    });
  }

  refuse(error: unknown): void {
    this.#onSettled();
    this.#waiting.reject(error);
  }
}
