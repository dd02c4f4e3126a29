/** `POST /v1/completions`, OpenAI's: one JSON answer, or a stream of events. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyReply } from 'fastify';
import type { Timeline } from '../../lib/request/timeline.ts';
import { answerBytes } from '../completion/answer-size.ts';
import type { RequestRecord } from '../completion/request-record.ts';
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
import { jsonPieces } from './json.ts';
import { closeAfterLinger } from './limits.ts';
import { Outlet } from './outlet.ts';
import { EventStream } from './sse.ts';

/** `1` asks for the gateway's timeline of the request, in the event that carries the usage: where its time went. */
const TIMELINE_HEADER = 'x-llavacode-timeline';

/** An answer of about so many bytes, or more, is sent in pieces. */
const LONG = 64 * 1024;

export function addCompletionsRoute(app: FastifyInstance, parts: CompletionParts): void {
  app.post('/v1/completions', {
    ...completionHooks,
    schema: { body: completionBody },
    handler: (request: CompletionHttpRequest, reply) =>
      serveCompletion(request, reply, parts, (call) => {
        const head = answerHead(call, parts);
        return call.request.stream ? streamed(call, head, parts, reply) : whole(call, head, parts, reply);
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

async function whole(
  { request, record, scope }: CompletionCall,
  head: AnswerHead,
  { journey, slowReaderMs }: CompletionParts,
  reply: FastifyReply,
): Promise<unknown> {
  const answer = new AnswerCollector();
  const choices = await journey.complete(request, { ...scope, emit: (delta) => answer.add(delta) });
  const { usage, context, suffix } = record;
  const body = answer.body(head, request, choices, usage, context, suffix);
  if (
    request.bestOf * answerBytes(request, usage.promptTokens, 0) + answerBytes(request, 0, usage.completionTokens) <
    LONG
  )
    return body;
  await sendLong(body, reply, record, (raw) => new Outlet(raw, scope.signal, slowReaderMs));
}

/** Sends an answer in pieces. Until it is out it counts as in flight, and it ends when the request's time is over. */
async function sendLong(
  body: object,
  reply: FastifyReply,
  record: RequestRecord,
  outletOf: (response: ServerResponse) => Outlet,
): Promise<void> {
  const { raw } = reply.hijack();
  raw.writeHead(200, {
    ...(reply.getHeaders() as OutgoingHttpHeaders),
    'content-type': 'application/json; charset=utf-8',
  });
  try {
    await outletOf(raw).sendPieces(jsonPieces(body));
    raw.end();
    closeAfterLinger(raw);
  } catch (error) {
    record.failed(asServingError(error)); // the status is out: a client sees that the answer breaks off
    raw.destroy();
  }
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
        const { usage, context: rag, suffix } = record;
        const report = events.open ? {} : { rag, suffix }; // the first event has it
        return events.send(chunkBody(head, request, delta, { ...report, usage }), delta.echo !== undefined);
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
