/**
 * The journey of one completion, top to bottom:
 *
 *   retrieve   chunks of the repository for the text around the cursor
 *   build      the prompt: token ids, and soft tokens where chunks are compressed
 *   place      a prefill worker, and a decode worker per choice, as each choice has its turn: a round
 *   prefill    one call per round computes the prompt's KV cache and the first token of each of its choices
 *   decode     one call per choice, which pulls the KV while prefill still computes
 *   emit       text, as the tokens come
 *   replay     where a worker is lost or full, or a choice makes way for another tenant: from `place` on, with the
 *              prompt and what was put out so far; the client sees one stream, no token of it lost or doubled
 *
 * retrieve and build are in preparation.ts; place, emit and replay in generation.ts; prefill and decode in attempt.ts.
 *
 * One signal per request ends all of it at any stage; its reason says why. What has been started is awaited to its end,
 * so that nothing is emitted after `complete` has settled and no worker keeps a slot that nobody waits for. One thing
 * may outlive it: the stream of a prompt that another request reads, or may come for (typed-through.ts).
 */
import { randomInt } from 'node:crypto';
import { Deferred } from '../../lib/async/deferred.ts';
import { runTogether } from '../../lib/async/task-group.ts';
import { Turns } from '../../lib/async/turns.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Sampling } from '../../lib/request/next-token.ts';
import type { QualityLadder } from '../admission/quality-ladder.ts';
import type { CompletionRequest } from '../request.ts';
import { assertAnswerFits } from './answer-size.ts';
import type { Choice } from './choice.ts';
import { DraftTexts, type DraftTextsParts } from './draft-texts.ts';
import { Generation, type GenerationParts } from './generation.ts';
import { Preparation, type PreparationParts, type PromptTask, type RequestScope } from './preparation.ts';
import { assertKnownIds, samplingsOf } from './sampling.ts';
import { TypedThrough, type TypedThroughParts } from './typed-through.ts';

export interface JourneyParts
  extends Omit<PreparationParts, 'draftTexts'>,
    Omit<GenerationParts, 'typedThrough' | 'draftTexts'>,
    Pick<DraftTextsParts, 'speculation'>,
    Omit<TypedThroughParts, 'format'> {
  /** undefined where every request gets the mode of context that it asks for. */
  readonly ladder?: Pick<QualityLadder, 'begin' | 'below'> | undefined;
}

export class Journey {
  readonly #parts: JourneyParts;
  readonly #preparation: Preparation;
  readonly #generation: Generation;

  constructor(parts: JourneyParts) {
    this.#parts = parts;
    const draftTexts = new DraftTexts(parts);
    this.#preparation = new Preparation({ ...parts, draftTexts });
    this.#generation = new Generation({ ...parts, draftTexts, typedThrough: new TypedThrough(parts) });
  }

  /**
   * Completes every prompt of a request. All prompts are made ready before the first goes to a worker, so that one that
   * is refused is refused before anything is computed or sent. They go to workers one after the other, and are
   * generated side by side.
   * Resolves with the choices, prompt by prompt.
   * @throws ServingError for whatever failed first; the signal's reason.
   */
  async complete(request: CompletionRequest, scope: RequestScope): Promise<(readonly Choice[])[]> {
    const { maxPromptMs } = request;
    if (maxPromptMs === undefined) return this.#complete(request, scope);
    const begun = new Set<number>();
    const late = new AbortController();
    const timer = setTimeout(() => {
      const message = `the prompt had no first token within ${maxPromptMs} ms (t_max_prompt_ms)`;
      late.abort(new ServingError('deadline_exceeded', message, { param: 't_max_prompt_ms' }));
    }, maxPromptMs);
    const signal = AbortSignal.any([scope.signal, late.signal]);
    const emit: RequestScope['emit'] = (delta) => {
      if (begun.add(delta.prompt).size === request.prompts.length) clearTimeout(timer);
      return scope.emit(delta);
    };
    try {
      return await this.#complete(request, { ...scope, signal, emit });
    } finally {
      clearTimeout(timer);
    }
  }

  async #complete(asked: CompletionRequest, scope: RequestScope): Promise<(readonly Choice[])[]> {
    const { tokenizer, format, ladder } = this.#parts;
    assertKnownIds(asked, tokenizer.vocabSize);
    const samplings = samplingsOf(asked, format, asked.seed ?? randomInt(2 ** 48 - 1));
    let request = ladder?.begin(asked, scope.tenant) ?? asked;
    for (;;) {
      try {
        return await this.#completeAs(request, samplings, scope);
      } catch (error) {
        const below = scope.record.dispatched ? undefined : ladder?.below(request, error);
        if (below === undefined) throw error;
        request = below;
      }
    }
  }

  /** Completes a request with its context in the mode that it has now. */
  async #completeAs(request: CompletionRequest, samplings: readonly Sampling[], scope: RequestScope) {
    const tasks = await this.#prepareAll(request, samplings, scope);
    const promptTokens = tasks.map(({ prompt }) => prompt.ids.length);
    assertAnswerFits(request, promptTokens);
    return runTogether(scope.signal, (signal) => {
      let previousPlaced: Promise<void> = Promise.resolve();
      return tasks.map((task) => {
        const placed = new Deferred<void>();
        const completed = this.#completePrompt(
          { ...task, scope: { ...scope, signal } },
          previousPlaced,
          placed.resolve,
        );
        completed.catch(() => {}).then(() => placed.resolve());
        previousPlaced = placed.promise;
        return completed;
      });
    });
  }

  async #prepareAll(
    request: CompletionRequest,
    samplings: readonly Sampling[],
    scope: RequestScope,
  ): Promise<PromptTask[]> {
    const tasks: PromptTask[] = [];
    const turns = new Turns(); // 128 prompts of code are tokenized in 0.2 s
    for (const promptIndex of request.prompts.keys()) {
      if (turns.over) await turns.next();
      scope.signal.throwIfAborted();
      tasks.push(await this.#preparation.prepare(request, promptIndex, samplings, scope));
    }
    return tasks;
  }

  /** @param previousPlaced settles when all choices of the prompt before this one have workers, or it has failed. */
  async #completePrompt(
    task: PromptTask,
    previousPlaced: Promise<void>,
    onPlaced: () => void,
  ): Promise<readonly Choice[]> {
    await previousPlaced;
    task.scope.signal.throwIfAborted();
    return this.#generation.complete(task, onPlaced);
  }
}
