/**
 * The journey of one completion, top to bottom:
 *
 *   retrieve   chunks of the repository for the text around the cursor
 *   build      the prompt: token ids, and soft tokens where chunks are compressed
 *   place      a prefill worker, and a decode worker per choice
 *   prefill    one call computes the prompt's KV cache and the first token of every choice
 *   decode     one call per choice, sent as soon as the prompt has its slot: it pulls the KV while prefill still computes
 *   emit       text, as the tokens come
 *
 * One signal per request ends all of it at any stage; its reason says why. What has been started is awaited to its end,
 * so that nothing is emitted after `complete` has settled and no worker keeps a slot for nobody.
 */
import { randomInt } from 'node:crypto';
import { ServingError } from '../lib/process/errors.ts';
import type { SampledToken, Sampling, TokenPrompt } from '../lib/request/sequence.ts';
import type { DecodeEvent__Output } from '../lib/rpc/gen/llavacode/v1/DecodeEvent.ts';
import type { KvHandle__Output } from '../lib/rpc/gen/llavacode/v1/KvHandle.ts';
import type { PrefillEvent__Output } from '../lib/rpc/gen/llavacode/v1/PrefillEvent.ts';
import { readFinishReason, readToken, samplingMessage, softTokensMessage } from '../lib/rpc/messages.ts';
import { PromptBuilder, type PromptParts } from '../lib/text/prompt.ts';
import type { PromptFormat } from '../lib/text/prompt-format.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';
import type { Choice, ChoiceDelta } from './choice.ts';
import { checkIds, choicesOf, echoOf, samplingsOf } from './choices.ts';
import type { CompletionRequest, PromptInput } from './completion-request.ts';
import { type ContextSources, findContext } from './context.ts';
import type { Placement, WorkerPool } from './placement.ts';
import type { RequestRecord } from './record.ts';
import { Deferred, together } from './together.ts';

export interface JourneyParts {
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  /** Of the bundle that the tokenizer belongs to. */
  readonly fingerprint: string;
  readonly pool: WorkerPool;
  readonly context: ContextSources;
}

/** What belongs to one request. */
export interface Trip {
  readonly id: string;
  readonly record: RequestRecord;
  readonly signal: AbortSignal;
  /** Takes what came of new tokens; the journey waits for it before it goes on with that choice. */
  readonly emit: (delta: ChoiceDelta) => void | Promise<void>;
}

/** One prompt on its way through the workers. */
interface Work {
  readonly request: CompletionRequest;
  readonly trip: Trip;
  readonly promptIndex: number;
  readonly prompt: TokenPrompt;
  readonly choices: readonly Choice[];
  readonly samplings: readonly Sampling[];
  readonly placement: Placement;
  /** Settled by the prefill call: the prompt has a slot; the first tokens are there. */
  readonly accepted: Deferred<KvHandle__Output>;
  readonly first: Deferred<FirstTokens>;
}

type FirstTokens = NonNullable<PrefillEvent__Output['first']>;
type Step = NonNullable<DecodeEvent__Output['step']>;

/** Why a call is cancelled that is no longer needed. */
const FINISHED = new Error('finished');

export class Journey {
  readonly #parts: JourneyParts;
  readonly #prompts: PromptBuilder;

  constructor(parts: JourneyParts) {
    this.#parts = parts;
    this.#prompts = new PromptBuilder(parts.tokenizer, parts.format);
  }

  /**
   * Completes every prompt of a request. Resolves with the choices, prompt by prompt, when all have finished.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async complete(request: CompletionRequest, trip: Trip): Promise<Choice[][]> {
    checkIds(request, this.#parts.tokenizer.vocabSize);
    const samplings = samplingsOf(request, this.#parts.format, request.seed ?? randomInt(2 ** 48 - 1));
    return together(trip.signal, (signal) =>
      request.prompts.map((_, promptIndex) =>
        this.#completePrompt(request, promptIndex, samplings, { ...trip, signal }),
      ),
    );
  }

  async #completePrompt(
    request: CompletionRequest,
    promptIndex: number,
    samplings: readonly Sampling[],
    trip: Trip,
  ): Promise<Choice[]> {
    const { tokenizer, format, pool } = this.#parts;
    const { timeline } = trip.record;
    const input = request.prompts[promptIndex]!;
    const context = await this.#retrieve(request, input, trip);
    timeline.mark('retrieved');
    const prompt = this.#prompts.build({
      prompt: input,
      suffix: request.suffix,
      context,
      capacity: pool.capacity,
      maxTokens: request.maxTokens,
      truncateTo: request.truncatePromptTokens,
    });
    trip.record.prompted(prompt);
    timeline.mark('tokenized');
    const choices = choicesOf(request, promptIndex, prompt, tokenizer, format);
    const placement = pool.place(prompt.ids.length, choices.length);
    timeline.mark('dispatched');
    const settled = { accepted: new Deferred<KvHandle__Output>(), first: new Deferred<FirstTokens>() };
    await this.#generate({ request, trip, promptIndex, prompt, choices, samplings, placement, ...settled });
    return choices;
  }

  async #retrieve(request: CompletionRequest, input: PromptInput, trip: Trip): Promise<PromptParts['context']> {
    if (request.rag === undefined) return undefined;
    const before = typeof input === 'string' ? input : this.#parts.tokenizer.decode(input);
    const sources = this.#parts.context;
    const { report, context } = await findContext(request.rag, before, request.suffix ?? '', sources, trip.signal);
    trip.record.context = report;
    return context;
  }

  /** Prefill and decodes of one prompt side by side, until every choice has finished or one of them has failed. */
  async #generate(work: Work): Promise<void> {
    const finished = new AbortController();
    let prefilling: Promise<void> | undefined;
    try {
      await together(work.trip.signal, (live) => {
        prefilling = this.#prefill(work, AbortSignal.any([live, finished.signal]));
        return work.choices.flatMap((_, i) => this.#runChoice(work, i, live));
      });
    } finally {
      // Frees the KV where a choice did not take its copy; after `released` there is nothing left to cancel.
      finished.abort(FINISHED);
      await prefilling;
    }
  }

  /** Follows the prefill call to its end. Never throws: a failure reaches the choices through what they wait for. */
  async #prefill({ request, trip, prompt, samplings, placement, ...work }: Work, signal: AbortSignal): Promise<void> {
    const { timeline } = trip.record;
    const worker = placement.prefill;
    const call = {
      requestId: trip.id,
      fingerprint: this.#parts.fingerprint,
      tokenIds: Array.from(prompt.ids),
      soft: softTokensMessage(prompt.soft),
      choices: samplings.map(samplingMessage),
      readers: request.maxTokens > 1 ? samplings.length : 0,
      promptLogprobs: request.echo ? (request.logprobs ?? -1) : -1,
    };
    // What has been resolved stays so: a prefill worker that is lost after its work was done harms nobody.
    const refuse = (error: unknown) => {
      work.accepted.reject(error);
      work.first.reject(error);
    };
    try {
      for await (const { accepted, first, released } of worker.client.prefill(call, signal)) {
        if (accepted?.kv) {
          timeline.stage('prefill_queue', accepted.queueUs / 1e6);
          work.accepted.resolve(accepted.kv);
        }
        if (first) {
          timeline.stage('prefill', first.prefillUs / 1e6);
          trip.record.reused(first.cachedTokens);
          work.first.resolve(first);
        }
        if (released) break;
      }
      refuse(new ServingError('worker_lost', `${worker.address} ended prefill without a first token`));
    } catch (error) {
      if (!signal.aborted) worker.failed(error);
      refuse(error);
    } finally {
      worker.release();
    }
  }

  /** One choice: its first token, which prefill sends, and the rest, by a decode call of its own. */
  #runChoice(work: Work, index: number, signal: AbortSignal): [first: Promise<void>, rest: Promise<void>] {
    const finished = new AbortController();
    const first = this.#emitFirst(work, index).then(() => {
      if (work.choices[index]!.finished) finished.abort(FINISHED);
    });
    const rest = this.#decode(work, index, first, AbortSignal.any([signal, finished.signal]))
      .catch((error) => {
        if (error !== FINISHED) throw error;
      })
      .finally(() => work.placement.decodes[index]!.release());
    return [first, rest];
  }

  async #emitFirst(work: Work, index: number): Promise<void> {
    const { request, promptIndex, prompt } = work;
    const { tokens, promptLogprobs } = await work.first.promise;
    const logprobs = promptLogprobs.map((token) => readToken(token, true));
    if (request.echo) {
      work.choices[index]!.echo(echoOf(request, promptIndex, prompt, logprobs, this.#parts.tokenizer));
    }
    await emit(work, index, request.maxTokens === 0 ? [] : [tokens[index]!]);
  }

  /** Follows the decode call to its end; what it brings waits until the first token is out. */
  async #decode(work: Work, choice: number, firstEmitted: Promise<void>, signal: AbortSignal): Promise<void> {
    const { maxTokens } = work.request;
    if (maxTokens <= 1) return;
    const { record, id: requestId } = work.trip;
    const worker = work.placement.decodes[choice]!;
    const kv = await work.accepted.promise;
    const sampling = samplingMessage(work.samplings[choice]!);
    const call = { requestId, kv, choice, sampling, maxTokens };
    try {
      for await (const event of worker.client.decode(call, signal)) {
        if (event.joined) record.joined(event.joined);
        if (!event.step) continue;
        await firstEmitted;
        await emit(work, choice, event.step.tokens, event.step.finishReason);
        if (work.choices[choice]!.finished) return; // leaving the loop cancels what goes on beyond a stop string
      }
      throw new ServingError('worker_lost', `${worker.address} ended decoding before the end of the text`);
    } catch (error) {
      if (!signal.aborted) worker.failed(error);
      throw error;
    }
  }
}

/** Hands new tokens of a choice to whoever asked for it. */
async function emit(work: Work, index: number, tokens: Step['tokens'], finishReason = ''): Promise<void> {
  const logprobs = work.samplings[index]!.logprobs >= 0;
  const sampled: SampledToken[] = tokens.map((token) => readToken(token, logprobs));
  const delta = work.choices[index]!.push(sampled, readFinishReason(finishReason));
  work.trip.record.delivered(delta);
  await work.trip.emit(delta);
}
