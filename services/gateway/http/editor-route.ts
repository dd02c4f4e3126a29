/** Routes of editors: each takes a body of its own, makes the one request of it, and words the answer. */
import type {} from '@fastify/swagger'; // a schema's summary and tags
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { CompletionRequest } from '../request.ts';
import { type AnswerWords, answerWith } from './answer.ts';
import { type CompletionCall, type CompletionParts, completionHooks, serveCompletion } from './completion-call.ts';
import { type BodySchema, IGNORED_HEADER, ignoredHeader, type Translated } from './editor-body.ts';
import type { ErrorBody } from './errors.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Words a failure in the API that the route speaks; OpenAI's shape where not given. */
    wordsFailure?: (body: ErrorBody) => object;
  }
}

export interface EditorParts extends CompletionParts {
  /** Tokens that a request may have, prompt and output together; undefined while no worker is there. */
  readonly capacity: () => number | undefined;
}

export interface EditorRoute<F> {
  readonly url: string;
  readonly body: BodySchema<Translated<F>>;
  /** What the route does, for the description of the API. */
  readonly summary: string;
  readonly tag: string;
  readonly words: (call: CompletionCall, form: F, reply: FastifyReply) => AnswerWords;
  /** The request as the route needs it, where the URL or the served model has a say. @throws ServingError */
  readonly adapt?: (request: Translated<F>, http: FastifyRequest) => Translated<F>;
  /** Answers a request that asks for no completion; undefined for one that does. */
  readonly instead?: (form: F) => object | undefined;
  readonly wordsFailure?: (body: ErrorBody) => object;
}

/** Adds a route that completes something. */
export function addEditorRoute<F>(app: FastifyInstance, route: EditorRoute<F>, parts: EditorParts): void {
  const { url, body, summary, tag, words, adapt, instead, wordsFailure } = route;
  app.post(url, {
    ...completionHooks,
    config: wordsFailure ? { wordsFailure } : {},
    schema: { body, summary, tags: [tag] },
    handler: async (request: FastifyRequest<{ Body: Translated<F> }>, reply) => {
      const adapted = adapt?.(request.body, request) ?? request.body;
      const fitted = withinCapacity(adapted, parts.capacity());
      request.body = fitted;
      const { ignored, form } = fitted;
      if (ignored.length > 0) reply.header(IGNORED_HEADER, ignoredHeader(ignored));
      const other = instead?.(form);
      if (other) return other;
      return serveCompletion(request, reply, parts, (call) => answerWith(call, words(call, form, reply), parts, reply));
    },
  });
}

/** Output tokens where nobody knows yet what the workers hold: the request waits for one, and is refused then. */
const UNKNOWN_CAPACITY = 2_048;

/**
 * Editors ask for more output than they mean, and rely on the model to end. A limit that would leave no room for a
 * prompt is brought down to half of what the model holds.
 */
function withinCapacity<R extends CompletionRequest>(request: R, capacity = UNKNOWN_CAPACITY): R {
  const most = Math.max(1, Math.floor(capacity / 2));
  if (request.maxTokens <= most) return request;
  const minTokens = Math.min(request.sampling.minTokens, most);
  return { ...request, maxTokens: most, sampling: { ...request.sampling, minTokens } };
}
