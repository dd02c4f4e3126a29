/**
 * A prompt's choices brought to their ends, on as many workers as it takes: place, run every choice, and replay from
 * `place` on where a worker is lost, with the prompt and what was put out so far.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { runTogether } from '../../lib/async/task-group.ts';
import type { SampledToken } from '../../lib/request/next-token.ts';
import { readFinishReason, readToken } from '../../lib/rpc/messages.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { Dispatcher } from '../admission/dispatcher.ts';
import { type Sessions, sessionOf } from '../context/sessions.ts';
import type { WorkerPoolConfig } from '../workers/settings.ts';
import { Attempt, type AttemptRequest, FINISHED, type Step } from './attempt.ts';
import type { PromptTask } from './preparation.ts';
import { assertReplayable, pauseBeforeReplay } from './replay.ts';
import type { CompletionConfig } from './settings.ts';

export interface GenerationParts
  extends Pick<CompletionConfig, 'maxReplays'>,
    Pick<WorkerPoolConfig, 'stallTimeoutMs'> {
  readonly tokenizer: Tokenizer;
  /** SHA-256 (hex) of the bundle that the tokenizer belongs to. */
  readonly fingerprint: string;
  readonly dispatcher: Pick<Dispatcher, 'place'>;
  readonly sessions: Sessions;
}

/** Some choices of a prompt, on the workers of one attempt. */
export interface Round {
  readonly task: PromptTask;
  /** `task.choices[indices[i]]` is choice i of the attempt. */
  readonly indices: readonly number[];
  readonly attempt: Attempt;
  /** Attempts at these choices before this one. */
  readonly replays: number;
}

export class Generation {
  readonly #parts: GenerationParts;

  constructor(parts: GenerationParts) {
    this.#parts = parts;
  }

  /**
   * Waits until it is the prompt's turn and workers have room for it, with what was put out so far.
   * @param indices of choices that stand at the same token: all at the first, or one that is replayed.
   * @throws ServingError saturated, no_worker; the signal's reason.
   */
  async place(task: PromptTask, indices: readonly number[] = [...task.choices.keys()], replays = 0): Promise<Round> {
    const { request, scope, prompt, choices, samplings, promptIndex } = task;
    const { record, tenant } = scope;
    const priorOutputIds = [...choices[indices[0]!]!.ids]; // a copy: the choice goes on
    const maxTokens = request.maxTokens - priorOutputIds.length;
    const ids = Int32Array.from([...prompt.ids, ...priorOutputIds]);
    const extendedPrompt = { ids, soft: prompt.soft };
    const session = sessionOf(request, tenant);
    const placement = await this.#parts.dispatcher.place(
      {
        promptTokens: ids.length,
        decodes: maxTokens > 1 ? indices.length : 0,
        positions: ids.length + maxTokens,
        preferNot: task.failedWorkers,
        ...(session !== undefined && this.#parts.sessions.affinity(session, extendedPrompt)),
        tenant,
        priority: request.priority,
        remainingMs: scope.deadlineMs - performance.now(),
        isReplay: replays > 0,
        sibling: promptIndex > 0,
      },
      scope.signal,
    );
    record.timeline.mark('dispatched');
    record.placed(
      placement.prefill.address,
      placement.decodes.map(({ address }) => address),
    );
    if (replays === 0) record.prompted(prompt); // not before: what is refused costs nothing
    if (session !== undefined) this.#parts.sessions.servedBy(session, placement.prefill.address, extendedPrompt);
    const attemptRequest: AttemptRequest = {
      requestId: scope.id,
      fingerprint: this.#parts.fingerprint,
      cacheSalt: `${tenant}\n${request.cacheSalt ?? ''}`, // never shared between tenants
      prompt: extendedPrompt,
      samplings: indices.map((index) => ({ ...samplings[index]!, priorOutputIds })),
      maxTokens,
      promptLogprobs: request.echo && priorOutputIds.length === 0 ? (request.logprobs ?? -1) : -1,
      deadlineMs: scope.deadlineMs,
      stallTimeoutMs: this.#parts.stallTimeoutMs,
      ...record.observerFor(priorOutputIds.length > 0),
    };
    return { task, indices, attempt: new Attempt(attemptRequest, placement), replays };
  }

  /**
   * Brings the choices of a round to their ends, in further rounds where workers are lost.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async run(round: Round): Promise<void> {
    const { task, indices, attempt, replays } = round;
    const { signal } = task.scope;
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
      assertReplayable(error, replays, this.#parts.maxReplays);
      await pauseAfter(round, error, signal);
    } finally {
      await attempt.end();
    }
    await this.run(await this.place(task, indices, replays + 1));
  }

  /**
   * Two tasks per choice, all side by side: its first token, which prefill sends, and the tokens after it, by a decode
   * call of its own. First tokens go out one after the other: echoes are as long as the prompt, and building all of
   * them at once would block the event loop for everybody.
   */
  #startChoices(round: Round, live: AbortSignal): Promise<void>[] {
    let previousFirst: Promise<unknown> = Promise.resolve();
    return round.indices.flatMap((_, i) => {
      const first = this.#emitFirst(round, i, previousFirst);
      previousFirst = first.catch(() => {});
      return [first, this.#decode(round, i, first, live)];
    });
  }

  /** @param previousFirst settles when the first token of the choice before is out. */
  async #emitFirst({ task, indices, attempt }: Round, i: number, previousFirst: Promise<unknown>): Promise<void> {
    const { request } = task;
    const { tokens, promptLogprobs } = await attempt.first;
    await previousFirst;
    if (request.echo) await nextTurn();
    const index = indices[i]!;
    const choice = task.choices[index]!;
    if (request.echo && choice.ids.length === 0) choice.echo(promptLogprobs);
    await emit(task, index, request.maxTokens === 0 ? [] : [tokens[i]!]);
  }

  /**
   * Follows a decode call to its end. The tokens that it brings wait until the first token is out. Where the call is
   * lost the choice goes on in a round of its own.
   */
  async #decode(round: Round, i: number, firstEmitted: Promise<void>, live: AbortSignal): Promise<void> {
    const { task, attempt, replays } = round;
    const index = round.indices[i]!;
    const choice = task.choices[index]!;
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
      assertReplayable(error, replays, this.#parts.maxReplays);
      await first; // if the first token fails, the whole attempt is replayed
      if (choice.finished) return;
      attempt.abandon();
      await pauseAfter(round, error, live);
      const scope = { ...task.scope, signal: live };
      await this.run(await this.place({ ...task, scope }, [index], replays + 1));
    }
  }
}

/** Notes which workers failed the round, and waits until the next one is due. */
async function pauseAfter({ task, attempt, replays }: Round, error: unknown, signal: AbortSignal): Promise<void> {
  for (const address of attempt.failedWorkers) task.failedWorkers.add(address);
  await pauseBeforeReplay(error, replays, signal);
  task.scope.record.replayed();
}

/** Turns new tokens of a choice into text and hands it to the client. */
async function emit(task: PromptTask, index: number, tokens: Step['tokens'], finishReason = ''): Promise<void> {
  const { record } = task.scope;
  const logprobs = task.samplings[index]!.logprobs >= 0;
  const sampled: SampledToken[] = tokens.map((token) => readToken(token, logprobs));
  const startMs = performance.now();
  const delta = task.choices[index]!.push(sampled, readFinishReason(finishReason));
  record.detokenized(performance.now() - startMs);
  record.delivered(delta);
  await task.scope.emit(delta);
}
