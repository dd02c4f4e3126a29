/** Answers in the shape of a chat, which Mistral's completions have as well. */
import type { ChoiceDelta } from '../completion/choice.ts';
import type { AnswerWords } from './answer.ts';
import { ragOf, usageOf } from './completion-answer.ts';
import type { CompletionCall, CompletionParts } from './completion-call.ts';
import { SSE_UNTIL_DONE } from './sse.ts';

/** @param usage where a stream says what it took: in the last value of its choices, or behind it if it is asked. */
export function chatWords(
  { request, record, scope, arm }: CompletionCall,
  { modelName }: Pick<CompletionParts, 'modelName'>,
  usage: 'with the last choice' | 'if asked',
): AnswerWords {
  const head = (object: string) => ({
    id: scope.id,
    object,
    created,
    model: modelName,
    system_fingerprint: `fp_${arm.fingerprint.slice(0, 12)}`,
  });
  const created = Math.floor(Date.now() / 1000);
  const chunk = head('chat.completion.chunk');
  const begun = new Set<number>();
  const total = request.prompts.length * request.n;
  let finished = 0;
  const indexOf = ({ prompt, choice }: ChoiceDelta) => prompt * request.n + choice;
  return {
    format: SSE_UNTIL_DONE,
    whole: (choices) => ({
      ...head('chat.completion'),
      choices: choices.map(({ text, finishReason }, index) => ({
        index,
        message: { role: 'assistant', content: text },
        logprobs: null,
        finish_reason: finishReason,
      })),
      usage: usageOf(record.usage, request),
      ...(record.context && { rag: ragOf(record.context) }),
    }),
    part(delta, first) {
      const index = indexOf(delta);
      const role = begun.has(index) ? {} : { role: 'assistant' };
      begun.add(index);
      if (delta.finishReason !== null) finished++;
      const isLast = finished === total && delta.finishReason !== null;
      const choice = { index, delta: { ...role, content: delta.text }, logprobs: null };
      return [
        {
          ...chunk,
          choices: [{ ...choice, finish_reason: delta.finishReason }],
          ...(usage === 'with the last choice' && isLast && { usage: usageOf(record.usage, request) }),
          ...(first && record.context && { rag: ragOf(record.context) }),
        },
      ];
    },
    last: () =>
      usage === 'if asked' && request.includeUsage
        ? { ...chunk, choices: [], usage: usageOf(record.usage, request) }
        : undefined,
  };
}
