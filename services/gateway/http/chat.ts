/**
 * `POST /v1/chat/completions`: what harnesses and conformance checks ask for, where the model has a chat template.
 * Tools, images and formats of answers are refused: a code model could only pretend.
 */
import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { ChatTemplate } from '../../lib/text/chat-template.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import { COMPLETION_DEFAULTS } from '../request.ts';
import { chatWords } from './chat-answer.ts';
import { modelField, predictionField, ragField, readPrediction, readRag, sessionField } from './completion-body.ts';
import { AS_MANY_AS_FIT, count, editorBody, penalty, seed, stops, topP } from './editor-body.ts';
import { addEditorRoute, type EditorParts } from './editor-route.ts';

export interface ChatParts extends EditorParts {
  readonly tokenizer: Tokenizer;
}

/** Messages of a chat. They are rendered in one go. */
const MAX_MESSAGES = 1_024;

const text = z.object({ type: z.literal('text', { error: 'is supported only as text' }), text: z.string() });
const content = z
  .union([z.string(), z.array(text)], { error: 'must be a text, or a list of parts of type text' })
  .transform((given) => (typeof given === 'string' ? given : given.map((part) => part.text).join('')));

/** A field that would change the answer in a way that there is not. */
const unsupported = (isHarmless: (value: unknown) => boolean, message: string) =>
  z
    .unknown()
    .optional()
    .refine((value) => value === undefined || isHarmless(value), message);
const isEmptyList = (value: unknown) => Array.isArray(value) && value.length === 0;
const isTextFormat = (value: unknown) =>
  typeof value === 'object' && value !== null && (value as { type?: unknown }).type === 'text';

const fields = z.object({
  model: modelField.optional(),
  messages: z
    .array(z.object({ role: z.string().max(64), content: content.default('') }))
    .min(1, 'must have at least one message')
    .max(MAX_MESSAGES, `must have at most ${MAX_MESSAGES} messages`),
  max_tokens: z.int().min(0).optional(),
  max_completion_tokens: z.int().min(0).optional(),
  temperature: z.number().min(0).max(2).default(1),
  top_p: topP.default(1),
  n: count.default(1),
  presence_penalty: penalty.default(0),
  frequency_penalty: penalty.default(0),
  stop: stops.default([]),
  seed: seed.optional(),
  stream: z.boolean().default(false),
  stream_options: z.object({ include_usage: z.boolean().default(false) }).optional(),
  tools: unsupported(isEmptyList, 'is not supported'),
  response_format: unsupported(isTextFormat, 'is supported only as text'),
  logprobs: unsupported((value) => value === false, 'is supported only as false'),
  prediction: predictionField.optional(),
  session: sessionField.optional(),
  rag: ragField.optional(),
});
type Messages = z.output<typeof fields>['messages'];

const body = editorBody(fields, (given) => ({
  request: {
    model: given.model,
    prompts: [],
    maxTokens: given.max_completion_tokens ?? given.max_tokens ?? AS_MANY_AS_FIT,
    sampling: {
      ...COMPLETION_DEFAULTS.sampling,
      temperature: given.temperature,
      topP: given.top_p,
      presencePenalty: given.presence_penalty,
      frequencyPenalty: given.frequency_penalty,
    },
    seed: given.seed,
    n: given.n,
    bestOf: given.n,
    stop: given.stop,
    stream: given.stream,
    includeUsage: given.stream_options?.include_usage ?? false,
    prediction: readPrediction(given.prediction),
    session: given.session,
    ...readRag(given.rag),
    addSpecialTokens: false, // the template puts them where they belong
  },
  form: given.messages,
}));

export function addChatRoute(app: FastifyInstance, parts: ChatParts): void {
  const template = new ChatTemplate(parts.tokenizer.chat);
  addEditorRoute<Messages>(
    app,
    {
      url: '/v1/chat/completions',
      body,
      summary: 'answers a chat, where the model has a chat template',
      tag: 'OpenAI',
      adapt: (request) => ({ ...request, prompts: [template.render(request.form)] }),
      words: (call) => chatWords(call, parts, 'if asked'),
    },
    parts,
  );
}
