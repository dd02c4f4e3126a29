/** Mistral's fill-in-the-middle, which clients of Codestral speak: a prompt in, the shape of a chat out. */
import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { COMPLETION_DEFAULTS } from '../request.ts';
import { chatWords } from './chat-answer.ts';
import { modelField, ragField, readRag, sessionField } from './completion-body.ts';
import {
  AS_MANY_AS_FIT,
  type BodyOf,
  editorBody,
  penalty,
  seed,
  stops,
  temperature,
  tokenLimit,
  topP,
} from './editor-body.ts';
import { addEditorRoute, type EditorParts } from './editor-route.ts';
import { modelOrServed } from './models.ts';

/** The names under which clients know the route. */
const URLS = ['/v1/fim/completions', '/fim/completions'];

/** Mistral recommends a temperature from 0 to 0.7, and does not say which one it takes by itself. */
const TEMPERATURE = 0.2;

const fields = z.object({
  model: modelField.optional(),
  prompt: z.string(),
  suffix: z.string().optional().describe('text after the cursor'),
  max_tokens: tokenLimit.optional(),
  max_completion_tokens: tokenLimit.optional().describe("OpenAI's newer name of max_tokens, which Continue may send"),
  min_tokens: z.int().min(0).default(0),
  temperature: temperature.default(TEMPERATURE),
  top_p: topP.default(1),
  presence_penalty: penalty.default(0),
  frequency_penalty: penalty.default(0),
  stop: stops.default([]),
  random_seed: seed.optional(),
  stream: z.boolean().default(false),
  metadata: z.unknown().optional().describe('has no effect'),
  session: sessionField.optional(),
  rag: ragField.optional(),
});

const body = editorBody(fields, (given) => ({
  request: {
    model: given.model,
    prompts: [given.prompt],
    suffix: given.suffix,
    maxTokens: given.max_tokens ?? given.max_completion_tokens ?? AS_MANY_AS_FIT,
    sampling: {
      ...COMPLETION_DEFAULTS.sampling,
      temperature: given.temperature,
      topP: given.top_p,
      minTokens: given.min_tokens,
      presencePenalty: given.presence_penalty,
      frequencyPenalty: given.frequency_penalty,
    },
    seed: given.random_seed,
    stop: given.stop,
    stream: given.stream,
    session: given.session,
    ...readRag(given.rag),
  },
  form: undefined,
}));

export function addMistralRoutes(app: FastifyInstance, parts: EditorParts): void {
  for (const url of URLS) {
    const summary = 'fills in the middle, as Codestral does';
    // Plugins that know Codestral have its name built in.
    const adapt = (request: BodyOf<typeof body>) =>
      request.model?.startsWith('codestral')
        ? { ...request, model: modelOrServed(request.model, parts.modelName) }
        : request;
    const words = (call: Parameters<typeof chatWords>[0]) => chatWords(call, parts, 'with the last choice');
    addEditorRoute(app, { url, body, summary, tag: 'Mistral', words, adapt }, parts);
  }
}
