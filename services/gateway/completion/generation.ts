/**
 * A prompt's choices brought to their ends, on as many workers as it takes. Choices get workers as there is room, a few
 * at a time; each grant is a round. A choice whose worker is lost or full, or which has to make way for another tenant,
 * goes on in a later round of its own, with the prompt and what was put out so far.
 */
import { runAsTheyCome, runTogether } from '../../lib/async/task-group.ts';
import { atOnce, inTurns, Turns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { cacheSaltOf } from '../../lib/request/cache-salt.ts';
import type { FinishReason, SampledToken } from '../../lib/request/next-token.ts';
import { readFinishReason, readToken } from '../../lib/rpc/messages.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { Dispatcher } from '../admission/dispatcher.ts';
import type { Grant } from '../admission/queued-prompt.ts';
import { type Sessions, sessionOf } from '../context/sessions.ts';
import type { CompletionRequest } from '../request.ts';
import type { WorkerPoolConfig } from '../workers/settings.ts';
import { Attempt, type AttemptObserver, type AttemptRequest, FINISHED } from './attempt.ts';
import { type Choice, type ChoiceDelta, type Echo, echoSteps } from './choice.ts';
import type { DraftTexts } from './draft-texts.ts';
import type { PromptTask } from './preparation.ts';
import { assertRepeatable, NO_TRIES, pauseBeforeRepeat, type Tries } from './replay.ts';
import { type SamePrompt, SamePrompts } from './same-prompts.ts';
import type { CompletionConfig } from './settings.ts';
import type { Step } from './step-buffer.ts';
import type { Answer, StreamPart } from './token-stream.ts';
import type { TypedThrough } from './typed-through.ts';

export interface GenerationParts
  extends Pick<CompletionConfig, 'maxReplays'>,
    Pick<WorkerPoolConfig, 'stallTimeoutMs'> {
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  readonly tokenizer: Tokenizer;
  readonly dispatcher: Pick<Dispatcher, 'place'>;
  readonly sessions: Sessions;
  readonly typedThrough: TypedThrough;
  readonly draftTexts: Pick<DraftTexts, 'remember'>;
}

/** Choices of a prompt that stand at the same token and need workers: all at the first, or one that goes on. */
interface Part {
  readonly task: PromptTask;
  readonly indices: readonly number[];
  readonly tries: Tries;
  /** undefined for a prompt that is new. */
  readonly before: Pick<Grant, 'enteredMs'> | undefined;
  /** Its worker was lost, and it goes first. */
  readonly isReplay: boolean;
  /** Worker that has computed the prompt before. */
  readonly affinityWorker: string | undefined;
  /** Whether the prompt's tokens and the times of its stages are to be counted: once per prompt. */
  readonly counts: boolean;
  readonly same: SamePrompt | undefined;
  readonly echo: PromptEcho;
  /** Since when they need workers, in ms of the monotonic clock. */
  readonly sinceMs: number;
}

/** What all rounds of a prompt that is echoed share. */
interface PromptEcho {
  /** It is made as soon as a round has brought the logprobs of the prompt. */
  made: Promise<Echo> | undefined;
}

/** Some choices of a part, on the workers of one grant. */
interface Round {
  /** `task.choices[indices[i]]` is choice i of the attempt. */
  readonly part: Part;
  readonly attempt: Attempt;
  readonly grant: Grant;
}

export class Generation {
  readonly #parts: GenerationParts;
  readonly #samePrompts = new SamePrompts();

  constructor(parts: GenerationParts) {
    this.#parts = parts;
  }

  /**
   * Brings all choices of a prompt to their ends.
   * @param onPlaced called when the last of them has workers.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async complete(task: PromptTask, onPlaced: () => void): Promise<readonly Choice[]> {
    if (this.#parts.typedThrough.takesPart(task)) await this.#completeShared(task, onPlaced);
    else await this.#compute(task, onPlaced);
    const { request, scope, choices } = task;
    this.#parts.draftTexts.remember(request, scope.tenant, choices[0]!.ids);
    return choices;
  }

  async #compute(task: PromptTask, onPlaced: () => void, counts = true): Promise<void> {
    const indices = [...task.choices.keys()];
    const same = await this.#same(task);
    const sinceMs = task.scope.record.timeline.at('tokenized') ?? performance.now();
    const start = {
      sinceMs,
      tries: NO_TRIES,
      before: undefined,
      isReplay: false,
      affinityWorker: same?.worker,
      counts,
    };
    try {
      await this.#runPart({ ...start, task, indices, same, echo: { made: undefined } }, onPlaced);
    } finally {
      same?.end();
    }
  }

  /** Waits for a prompt that is the same. A prompt that is given back is computed in any case. */
  async #same({ request, scope, prompt }: PromptTask): Promise<SamePrompt | undefined> {
    return request.echo ? undefined : this.#samePrompts.enter(prompt, saltOf(request, scope.tenant), scope.signal);
  }

  /**
   * Brings the one choice of a prompt to its end through a stream, which a later request may go on with; as far as the
   * stream of an earlier request goes, through that.
   */
  async #completeShared(task: PromptTask, onPlaced: () => void): Promise<void> {
    const choice = task.choices[0]!;
    const inherited = await this.#inherit(task);
    if (choice.finished) return;
    const counts = inherited.length === 0;
    if (!counts) task.scope.record.chargedToOther(-task.prompt.ids.length); // the prompt is computed after all
    const stream = this.#parts.typedThrough.open(task, inherited);
    const computed = this.#compute(
      { ...task, stream, scope: { ...task.scope, signal: stream.signal } },
      onPlaced,
      counts,
    )
      .then(() => stream.end())
      .catch((error) => stream.end(error));
    try {
      const reader = { signal: task.scope.signal, isOwner: true, answer: answerOf(task, 0) };
      for await (const part of stream.read(inherited.length, reader)) {
        await deliver(task, 0, part.tokens, part.finish);
        if (choice.finished) return; // leaving the loop ends the work, unless somebody else reads it
      }
    } finally {
      if (choice.finished) stream.abandon(); // a client that left while it was sent the end wants no more of it
      // What is given up is awaited to its end; what goes on has owners of its own.
      if (stream.signal.aborted || stream.over) await computed;
    }
  }

  /**
   * Follows the stream of an earlier request that is this one's, as long as it goes.
   * @returns the tokens that it had.
   */
  async #inherit(task: PromptTask): Promise<readonly SampledToken[]> {
    const found = this.#parts.typedThrough.find(task);
    if (found === undefined) return [];
    const { stream, from } = found;
    const { record, signal } = task.scope;
    metrics.typedThrough.inc({ output: stream.over ? 'ended' : 'running' });
    record.continued(task.prompt);
    const tokens: SampledToken[] = [];
    const following = record.timeline.begin('follow');
    try {
      for await (const part of stream.read(from, { signal, isOwner: false, answer: answerOf(task, from) })) {
        const start = from + tokens.length;
        tokens.push(...part.tokens);
        const charged = Math.min(stream.chargedTokens, from + tokens.length) - start;
        record.chargedToOther(Math.max(charged, 0));
        await deliver(task, 0, part.tokens, part.finish === 'stop' ? 'stop' : undefined);
        if (task.choices[0]!.finished) break;
      }
    } catch {
      signal.throwIfAborted();
      // The workers of the other request have failed it: this one goes on by itself.
    } finally {
      following.end();
    }
    return tokens;
  }

  /** Waits for workers, and runs the choices that have some while the others wait. */
  #runPart(part: Part, onPlaced: () => void = () => {}): Promise<void> {
    return runAsTheyCome(part.task.scope.signal, async (live, add) => {
      const task = { ...part.task, scope: { ...part.task.scope, signal: live } };
      let rest: Part = { ...part, task };
      let placing: Promise<Grant> | undefined = this.#place(rest);
      let { sinceMs } = part;
      while (placing) {
        const grant: Grant = await this.#waitFor(placing, part.task, sinceMs);
        sinceMs = performance.now();
        const granted = { ...rest, indices: rest.indices.slice(0, grant.choices) };
        const round = this.#roundOf(granted, grant);
        add(this.#run(round).finally(() => giveBackOutput(round)));
        // What the first round has computed is neither computed nor counted again.
        rest = { ...rest, indices: rest.indices.slice(grant.choices), counts: false };
        placing = grant.next;
      }
      onPlaced();
    });
  }

  /** @throws as {@link #place} does. */
  async #waitFor(placing: Promise<Grant>, { scope }: PromptTask, sinceMs: number): Promise<Grant> {
    const waiting = scope.record.timeline.begin('queue', {}, sinceMs);
    try {
      return await placing;
    } catch (error) {
      waiting.end(ServingError.from(error).code);
      throw error;
    } finally {
      waiting.end();
    }
  }

  /**
   * Waits until it is the prompt's turn and workers have room for it, with what was put out so far.
   * @throws ServingError saturated, no_worker; the signal's reason.
   */
  #place({ task, indices, before, isReplay, affinityWorker }: Part): Promise<Grant> {
    const { request, scope, promptIndex } = task;
    const { prompt, maxTokens } = restOf(task, indices);
    const promptTokens = prompt.ids.length;
    const session = sessionOf(request, scope.tenant);
    return this.#parts.dispatcher.place(
      {
        promptTokens,
        choices: indices.length,
        continues: maxTokens > 1,
        positions: promptTokens + maxTokens,
        preferNot: task.failedWorkers,
        tpotGoalMs: request.tpotGoalMs,
        ...(session !== undefined && this.#parts.sessions.affinity(session, prompt)),
        ...(affinityWorker !== undefined && { affinityWorker, affinityTokens: promptTokens }),
        tenant: scope.tenant,
        priority: request.priority,
        remainingMs: scope.deadlineMs - performance.now(),
        enteredMs: before?.enteredMs,
        isReplay,
        sibling: promptIndex > 0,
      },
      scope.signal,
    );
  }

  #roundOf(part: Part, grant: Grant): Round {
    const { task, indices, counts, echo } = part;
    const { request, scope, samplings } = task;
    const { record, tenant } = scope;
    const { prompt, maxTokens, priorOutputIds } = restOf(task, indices);
    record.timeline.mark('dispatched');
    record.placed(
      grant.prefill.address,
      grant.decodes.map(({ address }) => address),
    );
    // Not before: what is refused costs nothing.
    if (counts && part.before === undefined) record.prompted(prompt);
    const session = sessionOf(request, tenant);
    if (session !== undefined) this.#parts.sessions.servedBy(session, grant.prefill.address, prompt);
    const wantsPromptLogprobs = request.echo && priorOutputIds.length === 0 && echo.made === undefined;
    const attemptRequest: AttemptRequest = {
      requestId: scope.id,
      fingerprint: this.#parts.fingerprint,
      cacheSalt: saltOf(request, tenant),
      prompt,
      samplings: indices.map((index) => ({ ...samplings[index]!, priorOutputIds })),
      maxTokens,
      drafts: task.drafts && { ...task.drafts, before: [...(task.drafts.before ?? []), ...priorOutputIds] },
      onPredicted: (accepted, rejected) => record.predicted(accepted, rejected),
      promptLogprobs: wantsPromptLogprobs ? (request.logprobs ?? -1) : -1,
      promptLogprobsFrom: task.reportedFrom,
      deadlineMs: scope.deadlineMs,
      stallTimeoutMs: this.#parts.stallTimeoutMs,
      onCall: (name, worker, source) => record.called(name, worker, source),
      ...countingTokens(task, indices, givingBackCached(grant, record.observerFor(!counts))),
    };
    return { part, attempt: new Attempt(attemptRequest, grant), grant };
  }

  /**
   * Brings the choices of a round to their ends, in further rounds where workers are lost.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async #run(round: Round): Promise<void> {
    const { part, attempt } = round;
    const { signal } = part.task.scope;
    let again: Part;
    try {
      await runTogether(signal, (live) => {
        attempt.start(live);
        return this.#startChoices(round, live);
      });
      return;
    } catch (error) {
      if (attempt.hasFirst) throw error;
      // Prefill was lost before anything came of this attempt: all of it is done again.
      signal.throwIfAborted();
      const hasOutput = part.task.choices.some((_, index) => outputOf(part.task, index).ids.length > 0);
      assertRepeatable(error, part.tries, this.#parts.maxReplays, hasOutput);
      again = await this.#partAfter(round, part.indices, error, signal);
    } finally {
      await attempt.end();
    }
    await this.#runPart({ ...again, counts: part.counts });
  }

  /**
   * Two tasks per choice, all side by side: its first token, which prefill sends, and the tokens after it, by a decode
   * call of its own. First tokens go out one after the other: with an echo, each is as long as the prompt, and sending
   * all of them at once would block the event loop for everybody.
   */
  #startChoices(round: Round, live: AbortSignal): Promise<void>[] {
    let previousFirst: Promise<unknown> = Promise.resolve();
    return round.part.indices.flatMap((_, i) => {
      const first = this.#emitFirst(round, i, previousFirst);
      previousFirst = first.catch(() => {});
      return [first, this.#decode(round, i, first, live)];
    });
  }

  /** @param previousFirst settles when the first token of the choice before is out. */
  async #emitFirst({ part, attempt, grant }: Round, i: number, previousFirst: Promise<unknown>): Promise<void> {
    const { task, indices, echo } = part;
    const { request } = task;
    const { tokens, promptLogprobs } = await attempt.first;
    part.same?.computed(grant.prefill.address);
    // All rounds share it: the signal of none ends it.
    if (request.echo) echo.made ??= inTurns(this.#echoOf(task, promptLogprobs));
    const prompt = await echo.made;
    await previousFirst;
    const turns = new Turns();
    if (request.echo && turns.over) await turns.next(task.scope.signal);
    const index = indices[i]!;
    if (prompt && outputOf(task, index).ids.length === 0) task.choices[index]!.echo(prompt);
    await emit(task, index, request.maxTokens === 0 ? [] : [tokens[i]!]);
  }

  /** @param messages logprobs of the prompt, one per token, or none. */
  *#echoOf({ request, promptIndex, prompt }: PromptTask, messages: TokenMessages): Generator<void, Echo> {
    const logprobs = yield* readTokens(messages);
    return yield* echoSteps(request, promptIndex, prompt, logprobs, this.#parts.tokenizer);
  }

  /**
   * Follows a decode call to its end. The tokens that it brings wait until the first token is out. Where the call is
   * lost the choice goes on in a round of its own.
   */
  async #decode(round: Round, i: number, firstEmitted: Promise<void>, live: AbortSignal): Promise<void> {
    const { part, attempt } = round;
    const { task } = part;
    const index = part.indices[i]!;
    const choice = outputOf(task, index);
    if (task.request.maxTokens - choice.ids.length <= 1) return;
    const ended = new AbortController();
    const first = firstEmitted.then(() => choice.finished && ended.abort(FINISHED));
    first.catch(() => {}); // avoids an unhandled rejection
    try {
      for await (const step of attempt.decode(i, AbortSignal.any([live, ended.signal]))) {
        await first;
        if (choice.finished) return;
        await emit(task, index, step.tokens, step.finishReason);
        if (choice.finished) return; // leaving the loop cancels what goes on beyond a stop string
      }
    } catch (error) {
      live.throwIfAborted();
      if (choice.finished) return;
      assertRepeatable(error, part.tries, this.#parts.maxReplays, true);
      await first; // if the first token fails, the whole attempt is done again
      if (choice.finished) return;
      attempt.abandon();
      const again = await this.#partAfter(round, [index], error, live);
      await this.#runPart({ ...again, task: { ...task, scope: { ...task.scope, signal: live } } });
    }
  }

  /**
   * The choices of a round that go on after a failure, when it is time for that.
   * @throws the signal's reason.
   */
  async #partAfter(round: Round, indices: readonly number[], error: unknown, signal: AbortSignal): Promise<Part> {
    const { part, attempt, grant } = round;
    const { task } = part;
    const sinceMs = performance.now();
    const { reason, tries } = await pauseBeforeRepeat(error, part.tries, signal);
    const isReplay = reason === 'lost';
    if (isReplay) {
      for (const address of attempt.failedWorkers) task.failedWorkers.add(address);
      task.scope.record.replayed(ServingError.from(error).code);
    }
    return {
      ...part,
      indices,
      tries,
      sinceMs,
      before: grant,
      isReplay,
      affinityWorker: grant.prefill.address,
      counts: false,
    };
  }
}

/** Never shared between tenants. */
const saltOf = ({ cacheSalt = '' }: CompletionRequest, tenant: string) => cacheSaltOf(tenant, cacheSalt);

/** The prompt with what was put out of some choices so far, which is the same of all, and how much is left. */
function restOf(task: PromptTask, indices: readonly number[]) {
  const { request, prompt } = task;
  const priorOutputIds = [...outputOf(task, indices[0]!).ids]; // a copy: the choice goes on
  const ids = priorOutputIds.length === 0 ? prompt.ids : Int32Array.from([...prompt.ids, ...priorOutputIds]);
  return { prompt: { ids, soft: prompt.soft }, maxTokens: request.maxTokens - priorOutputIds.length, priorOutputIds };
}

/** The tenant is charged for a prompt as it stands; the prefill worker says how much of it was cached. */
function givingBackCached(grant: Grant, to: AttemptObserver): AttemptObserver {
  const onFirst: AttemptObserver['onFirst'] = (first) => {
    grant.giveBack('prompt', first.cachedTokens);
    to.onFirst(first);
  };
  return { ...to, onFirst };
}

/** The choices of a round have ended, here or in later rounds, and were charged for all tokens that they could take. */
function giveBackOutput({ part: { task, indices }, grant }: Round): void {
  const { request, promptIndex, scope } = task;
  const made = (index: number) => scope.record.decodedOf(promptIndex, index);
  const left = indices.reduce((sum, index) => sum + Math.max(0, request.maxTokens - made(index)), 0);
  grant.giveBack('output', left);
}

/**
 * Counts the tokens that workers make for choices of a prompt from here on. The client is charged for them even if it
 * never reads them.
 */
function countingTokens(task: PromptTask, indices: readonly number[], to: AttemptObserver) {
  const { request, promptIndex, scope } = task;
  const reached = indices.map((index) => outputOf(task, index).ids.length);
  const onDecoded = (i: number, tokens: number) => {
    reached[i]! += tokens;
    scope.record.decoded(promptIndex, indices[i]!, reached[i]!);
  };
  const onFirst: AttemptObserver['onFirst'] = (first) => {
    to.onFirst(first);
    if (request.maxTokens > 0) for (const i of indices.keys()) onDecoded(i, 1);
  };
  return { ...to, onFirst, onDecoded };
}

/** Tokens that are read between two steps: less than 1 ms. */
const TOKENS_PER_STEP = 1_024;

type TokenMessages = readonly Parameters<typeof readToken>[0][];

/** The logprobs of a prompt, which come in one message: there may be 100,000. */
function* readTokens(messages: TokenMessages): Generator<void, SampledToken[]> {
  const tokens: SampledToken[] = [];
  for (const message of messages) {
    tokens.push(readToken(message, true));
    if (tokens.length % TOKENS_PER_STEP === 0) yield;
  }
  return tokens;
}

/** What the tokens of a choice go into: the choice, or the stream that stands in its place. */
const outputOf = (task: PromptTask, index: number) => task.stream ?? task.choices[index]!;

/** Passes new tokens of a choice on, as workers send them. */
async function emit(task: PromptTask, index: number, tokens: Step['tokens'], finishReason = ''): Promise<void> {
  const logprobs = task.samplings[index]!.logprobs >= 0;
  const sampled: SampledToken[] = tokens.map((token) => readToken(token, logprobs));
  const finish = readFinishReason(finishReason);
  if (task.stream) task.stream.push(sampled, finish);
  else await deliver(task, index, sampled, finish);
}

/** Turns new tokens of a choice into text and hands it to the client. */
async function deliver(
  task: PromptTask,
  index: number,
  tokens: StreamPart['tokens'],
  finish: FinishReason | undefined,
): Promise<void> {
  const { record, signal, emit } = task.scope;
  const startMs = performance.now();
  const delta = await pushInto(task.choices[index]!, { tokens, finish }, task.request, signal);
  record.detokenized(performance.now() - startMs);
  record.delivered(delta);
  await emit(delta);
}

/** Only syntax trees take long. @throws the signal's reason. */
async function pushInto(
  choice: Choice,
  { tokens, finish }: StreamPart,
  { stopAt }: CompletionRequest,
  signal: AbortSignal,
): Promise<ChoiceDelta> {
  const steps = choice.push(tokens, finish);
  return stopAt === undefined ? atOnce(steps) : inTurns(steps, signal);
}

/** What a task with one choice makes of a stream from token number `from` on. */
function answerOf({ request, choices }: PromptTask, from: number): Answer {
  const rest: Answer['rest'] = () => {
    const choice = choices[0]!.anew();
    return async (part, signal) => {
      await pushInto(choice, part, request, signal);
      return choice.finished;
    };
  };
  return { from, rest };
}
