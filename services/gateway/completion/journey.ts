/**
 * The journey of one completion, top to bottom:
 *
 *   retrieve   chunks of the repository for the text around the cursor
 *   build      the prompt: token ids, and soft tokens where chunks are compressed
 *   place      a prefill worker, and a decode worker per choice, when it is the prompt's turn
 *   prefill    one call computes the prompt's KV cache and the first token of every choice
 *   decode     one call per choice, which pulls the KV while prefill still computes
 *   emit       text, as the tokens come
 *   replay     where a worker is lost: from `place` on, with the prompt and what was put out so far; the client sees one
 *              stream, no token of it lost or doubled
 *
 * One signal per request ends all of it at any stage; its reason says why. What has been started is awaited to its end,
 * so that nothing is emitted after `complete` has settled and no worker keeps a slot for nobody.
 */
import { randomInt } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Deferred } from '../../lib/async/deferred.ts';
import { runTogether } from '../../lib/async/task-group.ts';
import { REACH } from '../../lib/rag/search/query.ts';
import type { Retrieved } from '../../lib/rag/search/retrieval.ts';
import type { SampledToken, Sampling } from '../../lib/request/next-token.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';
import { readFinishReason, readToken } from '../../lib/rpc/messages.ts';
import { PromptBuilder, type PromptParts } from '../../lib/text/prompt.ts';
import type { PromptFormat, PromptOrder } from '../../lib/text/prompt-format.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { Dispatcher } from '../admission/dispatcher.ts';
import { type ContextSources, findContext } from '../context/context.ts';
import { hashOf, Sessions, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest, PromptInput } from '../request.ts';
import type { WorkerPool } from '../workers/worker-pool.ts';
import { type AttemptRequest, FINISHED, Leg, type Step } from './attempt.ts';
import type { Choice, ChoiceDelta } from './choice.ts';
import { assertReplayable, pauseBeforeReplay } from './replay.ts';
import type { RequestRecord } from './request-record.ts';
import { assertKnownIds, choicesOf, echoOf, samplingsOf } from './sampling.ts';

export interface JourneyParts {
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  readonly promptOrder?: PromptOrder;
  /** Of the bundle that the tokenizer belongs to. */
  readonly fingerprint: string;
  readonly pool: Pick<WorkerPool, 'capacity'>;
  readonly dispatcher: Pick<Dispatcher, 'place'>;
  /** How often a part of a request is done again when its worker is lost. */
  readonly maxReplays: number;
  readonly stallTimeoutMs: number;
  readonly context: ContextSources;
}

/** What belongs to one request. */
export interface RequestScope {
  readonly id: string;
  readonly tenant: string;
  readonly record: RequestRecord;
  /** When its budget is spent, in ms of the monotonic clock; the signal is aborted then. */
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
  /** Takes what came of new tokens; the journey waits for it before it goes on with that choice. */
  readonly emit: (delta: ChoiceDelta) => void | Promise<void>;
}

/** One prompt on its way. */
interface PromptTask {
  readonly request: CompletionRequest;
  readonly trip: RequestScope;
  readonly promptIndex: number;
  readonly prompt: TokenPrompt;
  readonly choices: readonly Choice[];
  readonly samplings: readonly Sampling[];
  /** Addresses of workers that have failed it. */
  readonly failedWorkers: Set<string>;
  /** It has workers: the request's next prompt may ask for some. */
  readonly placed: Deferred<void>;
}

/** One try at some choices of a prompt; `indices[i]` of the prompt's choices is number i of the leg. */
interface Attempt {
  readonly work: PromptTask;
  readonly indices: readonly number[];
  readonly leg: Leg;
  /** Tries before this one. */
  readonly replays: number;
}

export class Journey {
  readonly #parts: JourneyParts;
  readonly #prompts: PromptBuilder;
  readonly #sessions = new Sessions();

  constructor(parts: JourneyParts) {
    this.#parts = parts;
    this.#prompts = new PromptBuilder(parts.tokenizer, parts.format, parts.promptOrder);
  }

  /**
   * Completes every prompt of a request; they go to workers one after the other. Resolves with the choices, prompt by prompt.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async complete(request: CompletionRequest, trip: RequestScope): Promise<Choice[][]> {
    assertKnownIds(request, this.#parts.tokenizer.vocabSize);
    const samplings = samplingsOf(request, this.#parts.format, request.seed ?? randomInt(2 ** 48 - 1));
    return runTogether(trip.signal, (signal) => {
      let before: Promise<unknown> = Promise.resolve();
      return request.prompts.map((_, promptIndex) => {
        const turn = before;
        const placed = new Deferred<void>();
        const completed = this.#completePrompt(request, promptIndex, samplings, { ...trip, signal }, turn, placed);
        before = Promise.race([placed.promise, completed]).catch(() => {});
        return completed;
      });
    });
  }

  async #completePrompt(
    request: CompletionRequest,
    promptIndex: number,
    samplings: readonly Sampling[],
    trip: RequestScope,
    turn: Promise<unknown>,
    placed: Deferred<void>,
  ): Promise<Choice[]> {
    const { tokenizer, format, pool } = this.#parts;
    const { timeline } = trip.record;
    await turn;
    if (promptIndex > 0) await nextTurn(); // to others: 128 prompts of code are tokenized in 0.2 s
    trip.signal.throwIfAborted();
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
      addSpecialTokens: request.addSpecialTokens,
    });
    timeline.mark('tokenized');
    const choices = choicesOf(request, promptIndex, prompt, tokenizer, format);
    const failedWorkers = new Set<string>();
    const work = { request, trip, promptIndex, prompt, choices, samplings, failedWorkers, placed };
    await this.#generate(work, [...choices.keys()], 0);
    return choices;
  }

  async #retrieve(request: CompletionRequest, input: PromptInput, trip: RequestScope): Promise<PromptParts['context']> {
    if (request.rag === undefined) return undefined;
    const before = typeof input === 'string' ? input : this.#parts.tokenizer.decode(input.slice(-REACH));
    const { rag } = request;
    const session = sessionOf(request, trip.tenant);
    const key = hashOf([rag.repo, rag.mode, rag.path, rag.topK, rag.retriever]);
    const settle = session === undefined ? undefined : (found: Retrieved) => this.#sessions.settle(session, key, found);
    const sources = { ...this.#parts.context, settle, deadlineMs: trip.deadlineMs };
    const { report, context } = await findContext(rag, before, request.suffix ?? '', sources, trip.signal);
    trip.record.context = report;
    return context;
  }

  /**
   * Brings choices to their ends, on as many workers as it takes.
   * @param indices of choices that stand at the same token: all at the first, or one that is replayed.
   */
  async #generate(work: PromptTask, indices: readonly number[], replays: number): Promise<void> {
    const { signal } = work.trip;
    const leg = await this.#place(work, indices, replays > 0);
    const attempt: Attempt = { work, indices, leg, replays };
    try {
      await runTogether(signal, (live) => {
        leg.start(live);
        let before: Promise<unknown> = Promise.resolve();
        return indices.flatMap((_, i) => {
          const [first, rest] = this.#runChoice(attempt, i, live, before);
          before = first.catch(() => {});
          return [first, rest];
        });
      });
      return;
    } catch (error) {
      if (leg.hasFirst) throw error;
      // Prefill was lost before anything came of this leg: all of it is done again.
      signal.throwIfAborted();
      assertReplayable(error, replays, this.#parts.maxReplays);
      await this.#pauseBeforeReplay(attempt, error, signal);
    } finally {
      await leg.end();
    }
    await this.#generate(work, indices, replays + 1);
  }

  /** Waits for workers to which the prompt may go, with what was put out so far. */
  async #place(work: PromptTask, indices: readonly number[], again: boolean): Promise<Leg> {
    const { request, trip, prompt, choices, samplings } = work;
    const { record, tenant, signal } = trip;
    const priorOutputIds = [...choices[indices[0]!]!.ids]; // as it is now: the choice goes on
    const maxTokens = request.maxTokens - priorOutputIds.length;
    const ids = Int32Array.from([...prompt.ids, ...priorOutputIds]);
    const sent = { ids, soft: prompt.soft };
    const session = sessionOf(request, tenant);
    const demand = {
      promptTokens: ids.length,
      decodes: maxTokens > 1 ? indices.length : 0,
      positions: ids.length + maxTokens,
      preferNot: work.failedWorkers,
      ...(session !== undefined && this.#sessions.affinity(session, sent)),
    };
    const remainingMs = trip.deadlineMs - performance.now();
    const sibling = work.promptIndex > 0;
    const wish = { ...demand, tenant, priority: request.priority, remainingMs, isReplay: again, sibling };
    const placement = await this.#parts.dispatcher.place(wish, signal);
    work.placed.resolve();
    record.timeline.mark('dispatched');
    if (!again) record.prompted(prompt); // not before: what is refused costs nothing
    if (session !== undefined) this.#sessions.servedBy(session, placement.prefill.address, sent);
    const legRequest: AttemptRequest = {
      requestId: trip.id,
      fingerprint: this.#parts.fingerprint,
      cacheSalt: `${tenant}\n${request.cacheSalt ?? ''}`, // never shared between tenants
      prompt: sent,
      samplings: indices.map((index) => ({ ...samplings[index]!, priorOutputIds })),
      maxTokens,
      promptLogprobs: request.echo && priorOutputIds.length === 0 ? (request.logprobs ?? -1) : -1,
      deadlineMs: trip.deadlineMs,
      stallTimeoutMs: this.#parts.stallTimeoutMs,
      ...record.measuring(priorOutputIds.length > 0),
    };
    return new Leg(legRequest, placement);
  }

  /** One choice: its first token, which prefill sends, and the rest, by a decode call of its own. */
  #runChoice(
    attempt: Attempt,
    i: number,
    live: AbortSignal,
    before: Promise<unknown>,
  ): [first: Promise<void>, rest: Promise<void>] {
    const first = this.#emitFirst(attempt, i, before);
    return [first, this.#decode(attempt, i, first, live)];
  }

  /** @param before the choice before is out: echoes are as long as the prompt, and all at once they held up everybody. */
  async #emitFirst({ work, indices, leg }: Attempt, i: number, before: Promise<unknown>): Promise<void> {
    const { request, promptIndex, prompt } = work;
    const { tokens, promptLogprobs } = await leg.first;
    await before;
    if (request.echo) await nextTurn();
    const choice = work.choices[indices[i]!]!;
    if (request.echo && choice.ids.length === 0) {
      const logprobs = promptLogprobs.map((token) => readToken(token, true));
      choice.echo(echoOf(request, promptIndex, prompt, logprobs, this.#parts.tokenizer));
    }
    await emit(work, indices[i]!, request.maxTokens === 0 ? [] : [tokens[i]!]);
  }

  /** Follows a decode call to its end; what it brings waits until the first token is out. Replays it where it is lost. */
  async #decode(attempt: Attempt, i: number, firstEmitted: Promise<void>, live: AbortSignal): Promise<void> {
    const { work, leg } = attempt;
    const index = attempt.indices[i]!;
    const choice = work.choices[index]!;
    if (work.request.maxTokens - choice.ids.length <= 1) return;
    const finished = new AbortController();
    const first = firstEmitted.then(() => choice.finished && finished.abort(FINISHED));
    first.catch(() => {}); // nobody may be waiting for it
    try {
      for await (const step of leg.decode(i, AbortSignal.any([live, finished.signal]))) {
        await first;
        if (choice.finished) return;
        await emit(work, index, step.tokens, step.finishReason);
        if (choice.finished) return; // leaving the loop cancels what goes on beyond a stop string
      }
    } catch (error) {
      live.throwIfAborted();
      if (choice.finished) return;
      assertReplayable(error, attempt.replays, this.#parts.maxReplays);
      await first; // where it does not come the whole leg is lost
      if (choice.finished) return;
      leg.abandon();
      await this.#pauseBeforeReplay(attempt, error, live);
      await this.#generate({ ...work, trip: { ...work.trip, signal: live } }, [index], attempt.replays + 1);
    }
  }

  async #pauseBeforeReplay({ work, leg, replays }: Attempt, error: unknown, signal: AbortSignal): Promise<void> {
    for (const address of leg.failed) work.failedWorkers.add(address);
    await pauseBeforeReplay(error, replays, signal);
    work.trip.record.replayed();
  }
}

/** Hands new tokens of a choice to whoever asked for it. */
async function emit(work: PromptTask, index: number, tokens: Step['tokens'], finishReason = ''): Promise<void> {
  const logprobs = work.samplings[index]!.logprobs >= 0;
  const sampled: SampledToken[] = tokens.map((token) => readToken(token, logprobs));
  const startMs = performance.now();
  const delta = work.choices[index]!.push(sampled, readFinishReason(finishReason));
  work.trip.record.detokenized(performance.now() - startMs);
  work.trip.record.delivered(delta);
  await work.trip.emit(delta);
}
