/** Bodies of answers of `/v1/completions`, in OpenAI's shape, with the fields that this gateway adds. */
import type { FinishReason } from '../../lib/request/next-token.ts';
import type { Timeline } from '../../lib/request/timeline.ts';
import type { Choice, ChoiceDelta, Logprobs } from '../completion/choice.ts';
import type { Usage } from '../completion/request-record.ts';
import type { ContextReport } from '../context/context.ts';
import type { CompletionRequest } from '../request.ts';

/** The fields that every body of one answer begins with. */
export interface AnswerHead {
  readonly id: string;
  readonly object: 'text_completion';
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
}

interface ChoiceBody {
  readonly index: number;
  readonly text: string;
  readonly logprobs: Logprobs | null;
  readonly finish_reason: FinishReason | null;
  readonly token_ids?: readonly number[];
  readonly prompt_token_ids?: readonly number[];
}

/** One event of a stream. */
export function chunkBody(
  head: AnswerHead,
  request: CompletionRequest,
  delta: ChoiceDelta,
  extras: { readonly rag?: ContextReport; readonly usage: Usage },
) {
  const usage = request.continuousUsage ? extras.usage : null;
  return {
    ...head,
    choices: [choiceBody(delta.prompt * request.n + delta.choice, request, delta)],
    ...(request.includeUsage && { usage }),
    ...(extras.rag && { rag: extras.rag }),
  };
}

/** The last event of a stream whose request asked for usage. */
export const usageBody = (head: AnswerHead, usage: Usage, timeline?: Timeline) => ({
  ...head,
  choices: [],
  usage,
  ...(timeline && { timeline }),
});

/** Gathers the deltas of a whole answer. */
export class AnswerCollector {
  readonly #deltas = new Map<string, ChoiceDelta>();

  add(delta: ChoiceDelta): void {
    const key = `${delta.prompt}.${delta.choice}`;
    const before = this.#deltas.get(key);
    this.#deltas.set(key, before === undefined ? delta : joined(before, delta));
  }

  /** @param choices prompt by prompt; the `n` with the highest mean logprob are kept of each prompt's `best_of`. */
  body(
    head: AnswerHead,
    request: CompletionRequest,
    choices: readonly (readonly Choice[])[],
    usage: Usage,
    rag?: ContextReport,
  ) {
    const kept = choices.flatMap((promptChoices, prompt) =>
      bestOf(promptChoices, request.n).map((choice) => this.#deltas.get(`${prompt}.${promptChoices.indexOf(choice)}`)!),
    );
    return {
      ...head,
      choices: kept.map((delta, index) => choiceBody(index, request, delta)),
      usage,
      ...(rag && { rag }),
    };
  }
}

function bestOf(choices: readonly Choice[], n: number): readonly Choice[] {
  if (choices.length === n) return choices;
  return choices.toSorted((a, b) => b.meanLogprob - a.meanLogprob).slice(0, n);
}

function choiceBody(index: number, request: CompletionRequest, delta: ChoiceDelta): ChoiceBody {
  return {
    index,
    text: delta.text,
    logprobs: delta.logprobs,
    finish_reason: delta.finishReason,
    ...(request.returnTokenIds && { token_ids: delta.tokenIds }),
    ...(request.returnTokenIds && delta.promptTokenIds && { prompt_token_ids: delta.promptTokenIds }),
  };
}

/** Two deltas of one choice as one. */
function joined(a: ChoiceDelta, b: ChoiceDelta): ChoiceDelta {
  return {
    ...a,
    text: a.text + b.text,
    tokenIds: [...a.tokenIds, ...b.tokenIds],
    finishReason: b.finishReason,
    logprobs: a.logprobs &&
      b.logprobs && {
        tokens: [...a.logprobs.tokens, ...b.logprobs.tokens],
        token_logprobs: [...a.logprobs.token_logprobs, ...b.logprobs.token_logprobs],
        top_logprobs: [...a.logprobs.top_logprobs, ...b.logprobs.top_logprobs],
        text_offset: [...a.logprobs.text_offset, ...b.logprobs.text_offset],
      },
  };
}
