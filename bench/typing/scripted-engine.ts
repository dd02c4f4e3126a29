/**
 * Workers without a model, for `bench typing`: they predict what the recorded session is going to type, as a good model
 * would, and take the time that a machine with a given speed takes. So a gateway shows what it makes of predictions
 * that are right, which no model does that ships.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { DecodeClient, PrefillClient } from '../../services/lib/rpc/contract.ts';
import type { DecodeRequest } from '../../services/lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { PrefillRequest } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import type { WorkerDescription__Output } from '../../services/lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import type { PromptFormat } from '../../services/lib/text/prompt-format.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';

export interface ScriptedEngineOptions {
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  /** SHA-256 (hex) of the bundle that the gateway serves. */
  readonly fingerprint: string;
  /** The text of the file once all of it has been typed. */
  readonly script: string;
  /** Time for the prompt of a request, most of which is cached, and for one decode step, in ms. */
  readonly prefillMs: number;
  readonly stepMs: number;
}

/** Positions and slots that the workers say they have: more than a session needs. */
const CAPACITY = 8_192;
const SLOTS = 8;

export class ScriptedEngine {
  readonly #options: ScriptedEngineOptions;
  /** What was predicted for the prompts that decode calls continue, by lease. */
  readonly #predicted = new Map<string, readonly number[]>();
  #prompts = 0;
  #steps = 0;

  constructor(options: ScriptedEngineOptions) {
    this.#options = options;
  }

  /** Prompts that were computed. */
  get prompts(): number {
    return this.#prompts;
  }

  /** Tokens of decode steps that were made, wanted or not. */
  get steps(): number {
    return this.#steps;
  }

  readonly prefill: PrefillClient = {
    prefill: (request, signal) => this.#prefill(request, signal),
    describe: async () => this.#describe('prefill'),
    close: () => {},
  };

  readonly decode: DecodeClient = {
    decode: (request, signal) => this.#decode(request, signal),
    describe: async () => this.#describe('decode'),
    close: () => {},
  };

  /** What is going to be typed after a prompt, as token ids; the end of text where the typist is off the script. */
  predict(prompt: readonly number[], prior: number): readonly number[] {
    const { tokenizer, format, script } = this.#options;
    const [prefix, suffix, middle] = format.frame as [number, number, number];
    const end = prompt.lastIndexOf(middle);
    const left = prompt.slice(prompt.lastIndexOf(prefix, end) + 1, end);
    const before = left.includes(suffix) ? left.slice(0, left.indexOf(suffix)) : left;
    const text = tokenizer.decode(before) + tokenizer.decode(prompt.slice(prompt.length - prior, prompt.length));
    const ids = script.startsWith(text) ? tokenizer.encode(script.slice(text.length)) : [];
    return [...ids, ...format.stopIds.slice(0, 1)];
  }

  async *#prefill(request: PrefillRequest, signal: AbortSignal) {
    const { fingerprint, prefillMs } = this.#options;
    const ids = request.tokenIds ?? [];
    const leaseId = `${++this.#prompts}`;
    const predicted = this.predict(ids, request.choices?.[0]?.priorOutputIds?.length ?? 0);
    this.#predicted.set(leaseId, predicted);
    const kv = {
      address: 'scripted',
      leaseId,
      fingerprint,
      positions: ids.length,
      leaseMs: 60_000,
      seal: Buffer.alloc(0),
    };
    yield { kind: 'accepted' as const, accepted: { kv, queueUs: 0 } };
    await sleep(prefillMs, undefined, { signal });
    const tokens = [{ id: predicted[0]!, logprob: 0, top: [] }];
    const first = { tokens, promptLogprobs: [], cachedTokens: 0, prefillUs: prefillMs * 1_000, chunks: 1 };
    yield { kind: 'first' as const, first };
    yield { kind: 'released' as const, released: {} };
  }

  async *#decode({ kv, maxTokens = 0, sampling }: DecodeRequest, signal: AbortSignal) {
    const { prefillMs, stepMs } = this.#options;
    const predicted = this.#predicted.get(kv?.leaseId ?? '') ?? [];
    this.#predicted.delete(kv?.leaseId ?? '');
    // The KV is there when the prompt has been computed.
    await sleep(prefillMs, undefined, { signal });
    yield { kind: 'joined' as const, joined: { queueUs: 0, handoffUs: 0, handoffExposedUs: 0, handoffBytes: 0 } };
    for (let position = 1; position < maxTokens; position++) {
      await sleep(stepMs, undefined, { signal });
      this.#steps++;
      const id = predicted[Math.min(position, predicted.length - 1)]!;
      const isOver = sampling?.stopTokenIds?.includes(id) ?? false;
      const finishReason = isOver ? 'stop' : position === maxTokens - 1 ? 'length' : '';
      const tokens = [{ id, logprob: 0, top: [] }];
      const step = { tokens, finishReason, acceptedPredicted: 0, rejectedPredicted: 0 };
      yield { kind: 'step' as const, step };
      if (isOver) return;
    }
  }

  #describe(role: string): WorkerDescription__Output {
    const { fingerprint } = this.#options;
    const slots = { capacity: CAPACITY, slots: SLOTS, freeSlots: SLOTS, queued: 0 };
    const pace = { prefillTokensPerSecond: 0, overdueMs: 0, stepMs: [] };
    return { role, model: 'scripted', fingerprint, layout: null, ...slots, ...pace, device: 'cpu', kvFolder: '' };
  }
}
