/** Bodies of answers of `/v1/completions`, in OpenAI's shape, with the fields that this gateway adds. */
import type { FinishReason } from '../../lib/request/next-token.ts';
import type { Timeline } from '../../lib/request/timeline.ts';
import type { ChoiceDelta, Echo, TokenReport } from '../completion/choice.ts';
import type { ContextReport } from '../context/context.ts';
import type { CompletionRequest, Usage } from '../request.ts';
import { LazyList } from './json.ts';

/** The fields that every body of one answer begins with. */
export interface AnswerHead {
  readonly id: string;
  readonly object: 'text_completion';
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
}

/** One entry per token in each list; offsets count Unicode characters from the start of the choice's text. */
interface LogprobsBody {
  readonly tokens: LazyList<string>;
  readonly token_logprobs: LazyList<number | null>;
  readonly top_logprobs: LazyList<Readonly<Record<string, number>> | null>;
  readonly text_offset: LazyList<number>;
}

interface ChoiceBody {
  readonly index: number;
  readonly text: string;
  readonly logprobs: LogprobsBody | null;
  readonly finish_reason: FinishReason | null;
  readonly token_ids?: readonly number[];
  readonly prompt_token_ids?: readonly number[];
}

/** What stood in the prompt, and what did not. */
interface Reports {
  readonly rag?: ContextReport | undefined;
  readonly suffix?: 'unsupported' | undefined;
}

/** One event of a stream. */
export function chunkBody(
  head: AnswerHead,
  request: CompletionRequest,
  delta: ChoiceDelta,
  extras: Reports & { readonly usage: Usage },
) {
  const usage = request.continuousUsage ? usageOf(extras.usage, request) : null;
  return {
    ...head,
    choices: [choiceBody(delta.prompt * request.n + delta.choice, request, delta)],
    ...(request.includeUsage && { usage }),
    ...(extras.rag && { rag: ragOf(extras.rag) }),
    ...(extras.suffix && { suffix: extras.suffix }),
  };
}

/** The last event of a stream whose request asked for usage. */
export const usageBody = (head: AnswerHead, request: CompletionRequest, usage: Usage, timeline?: Timeline) => ({
  ...head,
  choices: [],
  usage: usageOf(usage, request),
  ...(timeline && { timeline }),
});

/** A whole answer. */
export const wholeBody = (
  head: AnswerHead,
  request: CompletionRequest,
  choices: readonly ChoiceDelta[],
  extras: Reports & { readonly usage: Usage },
) => ({
  ...head,
  choices: choices.map((choice, index) => choiceBody(index, request, choice)),
  usage: usageOf(extras.usage, request),
  ...(extras.rag && { rag: ragOf(extras.rag) }),
  ...(extras.suffix && { suffix: extras.suffix }),
});

function choiceBody(index: number, request: CompletionRequest, delta: ChoiceDelta): ChoiceBody {
  return {
    index,
    text: delta.text,
    logprobs: delta.reports ? logprobsOf(delta.reports, delta.echo) : null,
    finish_reason: delta.finishReason,
    ...(request.returnTokenIds && { token_ids: delta.tokenIds }),
    ...(request.returnTokenIds && delta.promptTokenIds && { prompt_token_ids: delta.promptTokenIds }),
  };
}

function logprobsOf(reports: readonly TokenReport[], echo: Echo | undefined): LogprobsBody {
  const list = <T>(item: (report: TokenReport) => T) =>
    new LazyList(function* () {
      for (const report of echo?.reports() ?? []) yield item(report);
      for (const report of reports) yield item(report);
    });
  return {
    tokens: list(({ bytes }) => tokenName(bytes)),
    token_logprobs: list(({ candidates }) => candidates?.[0].logprob ?? null),
    top_logprobs: list(({ candidates }) =>
      candidates ? Object.fromEntries(candidates.map(({ bytes, logprob }) => [tokenName(bytes), logprob])) : null,
    ),
    text_offset: list(({ textOffset }) => textOffset),
  };
}

/** Names of tokens, by the bytes that the tokenizer holds: one per token of the vocabulary. */
const tokenNames = new WeakMap<Uint8Array, string>();

/** A token's text, or its bytes as OpenAI writes them where they are not whole characters. */
function tokenName(bytes: Uint8Array): string {
  let name = tokenNames.get(bytes);
  if (name === undefined) {
    const text = Buffer.from(bytes).toString('utf8');
    const escaped = () => Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
    name = Buffer.from(text).equals(bytes) ? text : `bytes:${escaped()}`;
    tokenNames.set(bytes, name);
  }
  return name;
}

/** The field `usage`, of OpenAI's answers and of those that follow them; it counts a prediction if there is one. */
export const usageOf = (
  { promptTokens, completionTokens, cachedTokens, softTokens, acceptedPredicted, rejectedPredicted }: Usage,
  { prediction }: Pick<CompletionRequest, 'prediction'>,
) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens, soft_tokens: softTokens },
  ...(prediction !== undefined && {
    completion_tokens_details: {
      accepted_prediction_tokens: acceptedPredicted,
      rejected_prediction_tokens: rejectedPredicted,
    },
  }),
});

/** The field `rag`: the context that stood in the prompt. */
export const ragOf = ({ mode, chunks, files, indexVersion, degraded, ladder }: ContextReport) => ({
  mode,
  chunks: chunks.map(({ path, startLine, endLine, score, overlay, form }) => ({
    path,
    start_line: startLine,
    end_line: endLine,
    score,
    ...(overlay && { overlay }),
    ...(form && { form }),
  })),
  ...(files && { files }),
  index_version: indexVersion,
  degraded,
  ladder,
});
