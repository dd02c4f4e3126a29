/** `POST /v1/completions`, OpenAI's: one JSON answer, or a stream of events. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { Timeline } from '../../lib/request/timeline.ts';
import { type AnswerWords, answerWith } from './answer.ts';
import { type AnswerHead, chunkBody, usageBody, wholeBody } from './completion-answer.ts';
import { completionBody } from './completion-body.ts';
import {
  type CompletionCall,
  type CompletionHttpRequest,
  type CompletionParts,
  completionHooks,
  serveCompletion,
} from './completion-call.ts';
import { SSE_UNTIL_DONE } from './sse.ts';

/** `1` asks for the gateway's timeline of the request, in the event that carries the usage: where its time went. */
const TIMELINE_HEADER = 'x-llavacode-timeline';

export function addCompletionsRoute(app: FastifyInstance, parts: CompletionParts): void {
  app.post('/v1/completions', {
    ...completionHooks,
    schema: { body: completionBody },
    handler: (request: CompletionHttpRequest, reply) =>
      serveCompletion(request, reply, parts, (call) => answerWith(call, openAiWords(call, parts, reply), parts, reply)),
  });
}

function openAiWords(
  { request, record, scope }: CompletionCall,
  parts: CompletionParts,
  reply: FastifyReply,
): AnswerWords {
  const head: AnswerHead = {
    id: scope.id,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: parts.modelName,
    system_fingerprint: `fp_${parts.fingerprint.slice(0, 12)}`,
  };
  return {
    format: SSE_UNTIL_DONE,
    whole: (choices) => wholeBody(head, request, choices, { rag: record.context, usage: record.usage }),
    part: (delta, first) => [
      chunkBody(head, request, delta, { rag: first ? record.context : undefined, usage: record.usage }),
    ],
    last: () =>
      request.includeUsage ? usageBody(head, record.usage, askedTimeline(reply, record.timeline)) : undefined,
  };
}

const askedTimeline = ({ request }: FastifyReply, timeline: Timeline) =>
  request.headers[TIMELINE_HEADER] === '1' ? timeline : undefined;
