/** `POST /v1/completions`, OpenAI's: one JSON answer, or a stream of events. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { Timeline } from '../../lib/request/timeline.ts';
import { AnswerCollector, type AnswerHead, chunkBody, usageBody } from './completion-answer.ts';
import { completionBody } from './completion-body.ts';
import {
  type CompletionCall,
  type CompletionHttpRequest,
  type CompletionParts,
  completionHooks,
  serveCompletion,
} from './completion-call.ts';
import { asServingError, errorBody } from './errors.ts';
import { EventStream } from './sse.ts';

/** `1` asks for the gateway's timeline of the request, in the event that carries the usage: where its time went. */
const TIMELINE_HEADER = 'x-llavacode-timeline';

export function addCompletionsRoute(app: FastifyInstance, parts: CompletionParts): void {
  app.post('/v1/completions', {
    ...completionHooks,
    schema: { body: completionBody },
    handler: (request: CompletionHttpRequest, reply) =>
      serveCompletion(request, reply, parts, (call) => {
        const head = answerHead(call, parts);
        return call.request.stream ? streamed(call, head, parts, reply) : whole(call, head, parts);
      }),
  });
}

const answerHead = ({ scope }: CompletionCall, { modelName, fingerprint }: CompletionParts): AnswerHead => ({
  id: scope.id,
  object: 'text_completion',
  created: Math.floor(Date.now() / 1000),
  model: modelName,
  system_fingerprint: `fp_${fingerprint.slice(0, 12)}`,
});

async function whole({ request, record, scope }: CompletionCall, head: AnswerHead, { journey }: CompletionParts) {
  const answer = new AnswerCollector();
  const choices = await journey.complete(request, { ...scope, emit: (delta) => answer.add(delta) });
  return answer.body(head, request, choices, record.usage, record.context);
}

async function streamed(
  { request, record, scope }: CompletionCall,
  head: AnswerHead,
  { journey, slowReaderMs }: CompletionParts,
  reply: FastifyReply,
): Promise<void> {
  const events = new EventStream(reply, scope.signal, slowReaderMs);
  try {
    await journey.complete(request, {
      ...scope,
      emit: (delta) => {
        const rag = events.open ? undefined : record.context;
        return events.send(chunkBody(head, request, delta, { rag, usage: record.usage }));
      },
    });
    record.timeline.mark('last_token');
    events.end(request.includeUsage ? usageBody(head, record.usage, askedTimeline(reply, record.timeline)) : undefined);
  } catch (error) {
    if (!events.open) throw error;
    const failure = asServingError(error);
    record.failed(failure);
    events.end(errorBody(failure, reply.request.id, reply.server.tellsInside));
  }
}

const askedTimeline = ({ request }: FastifyReply, timeline: Timeline) =>
  request.headers[TIMELINE_HEADER] === '1' ? timeline : undefined;
