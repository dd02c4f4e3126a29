/**
 * `POST /v1/completions`, OpenAI's, and its other names: one JSON answer, or a stream of events. Tabby's completions
 * have the same URL.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { Timeline } from '../../lib/request/timeline.ts';
import type { CompletionRequest } from '../request.ts';
import { type AnswerWords, answerWith } from './answer.ts';
import { type AnswerHead, chunkBody, usageBody, wholeBody } from './completion-answer.ts';
import { completionBody, completionFields } from './completion-body.ts';
import { type CompletionCall, type CompletionParts, completionHooks, serveCompletion } from './completion-call.ts';
import { type BodySchema, IGNORED_HEADER, ignoredHeader, ignoringUnknown, type Translated } from './editor-body.ts';
import type { EditorParts } from './editor-route.ts';
import { modelOrServed } from './models.ts';
import type { HttpConfig } from './settings.ts';
import { SSE_UNTIL_DONE } from './sse.ts';
import { type TabbyParts, tabbyWords } from './tabby.ts';
import { isTabby, type TabbyForm, tabbyBody } from './tabby-body.ts';

/** `1` asks for the gateway's timeline of the request, in the event that carries the usage: where its time went. */
const TIMELINE_HEADER = 'x-llavacode-timeline';

export interface CompletionsParts
  extends EditorParts,
    Pick<TabbyParts, 'tokenizer'>,
    Pick<HttpConfig, 'unknownFields'> {}

/** A body of OpenAI's or of Tabby's. */
type CompletionsBody = CompletionRequest & Partial<Translated<TabbyForm | undefined>>;

const lenientBody = ignoringUnknown(completionBody, completionFields);

/** Reads bodies of Tabby's as well, which share the route. @param openAi reads the others. */
const orTabby = (openAi: Pick<BodySchema<CompletionsBody>, 'safeParse'>): BodySchema<CompletionsBody> => ({
  fields: z.union([completionFields, tabbyBody.fields]),
  safeParse: (body) => (isTabby(body) ? tabbyBody : openAi).safeParse(body),
});

export function addCompletionsRoutes(app: FastifyInstance, parts: CompletionsParts): void {
  const body = orTabby(parts.unknownFields === 'ignore' ? lenientBody : completionBody);
  const summary = "completes a prompt (OpenAI's body), or fills in the middle (Tabby's, with segments)";
  app.post('/v1/completions', {
    ...completionHooks,
    schema: { body, summary, tags: ['OpenAI', 'Tabby'] },
    handler: (request: CompletionsHttpRequest, reply) => complete(request, reply, parts),
  });
  const lenient = { ...completionHooks, schema: { body: lenientBody, tags: ['OpenAI'] } };
  app.post('/beta/completions', {
    ...lenient,
    schema: { ...lenient.schema, summary: "DeepSeek's name of /v1/completions; unknown fields are ignored" },
    handler: (request: CompletionsHttpRequest, reply) => {
      // Its clients have DeepSeek's names built in.
      const { model } = request.body;
      if (model?.startsWith('deepseek'))
        request.body = { ...request.body, model: modelOrServed(model, parts.modelName) };
      return complete(request, reply, parts);
    },
  });
  app.post('/v1/engines/:engine/completions', {
    ...lenient,
    schema: { ...lenient.schema, summary: 'an older name of /v1/completions; unknown fields are ignored' },
    handler: (request: CompletionsHttpRequest, reply) => {
      // Clients of this route have the name of an engine built in.
      const { engine } = request.params as { engine: string };
      const model = modelOrServed(request.body.model ?? engine, parts.modelName);
      request.body = { ...request.body, model };
      return complete(request, reply, parts);
    },
  });
}

type CompletionsHttpRequest = FastifyRequest<{ Body: CompletionsBody }>;

function complete(request: CompletionsHttpRequest, reply: FastifyReply, parts: CompletionsParts): Promise<unknown> {
  const { form, ignored = [] } = request.body;
  if (ignored.length > 0) reply.header(IGNORED_HEADER, ignoredHeader(ignored));
  return serveCompletion(request, reply, parts, (call) => {
    const words = form ? tabbyWords(call, form, parts) : openAiWords(call, parts, reply);
    return answerWith(call, words, parts, reply);
  });
}

function openAiWords(
  { request, record, scope, arm }: CompletionCall,
  parts: CompletionParts,
  reply: FastifyReply,
): AnswerWords {
  const head: AnswerHead = {
    id: scope.id,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: parts.modelName,
    system_fingerprint: `fp_${arm.fingerprint.slice(0, 12)}`,
  };
  return {
    format: SSE_UNTIL_DONE,
    whole: (choices) =>
      wholeBody(head, request, choices, { rag: record.context, suffix: record.suffix, usage: record.usage }),
    part: (delta, first) => [
      chunkBody(head, request, delta, {
        ...(first && { rag: record.context, suffix: record.suffix }),
        usage: record.usage,
      }),
    ],
    last: () =>
      request.includeUsage ? usageBody(head, request, record.usage, askedTimeline(reply, record.timeline)) : undefined,
  };
}

const askedTimeline = ({ request }: FastifyReply, timeline: Timeline) =>
  request.headers[TIMELINE_HEADER] === '1' ? timeline : undefined;
