/** The HTTP side: routes, validation, errors in OpenAI's shape, one record per completion. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { ServingError } from '../../lib/process/errors.ts';
import { isLoopback } from '../../lib/process/exposure.ts';
import { exposition, expositionType } from '../../lib/process/metrics.ts';
import type { InflightRequest, InflightRequests } from '../admission/inflight.ts';
import type { Journey, RequestScope } from '../completion/journey.ts';
import { RedactedSample } from '../completion/redacted-sample.ts';
import { RequestRecord } from '../completion/request-record.ts';
import type { CompletionRequest } from '../request.ts';
import { type ApiKeys, type Identity, NO_KEYS, storeKey } from '../tenants/api-keys.ts';
import type { TokenQuota } from '../tenants/token-quota.ts';
import { type AppOptions, createApp } from './app.ts';
import { AnswerCollector, type AnswerHead, chunkBody, usageBody } from './completion-answer.ts';
import { completionBody } from './completion-body.ts';
import { asServingError, errorBody, validationError } from './errors.ts';
import { awaitBody, closeAfterLinger } from './limits.ts';
import { addRepoRoutes, type RepoParts } from './repos.ts';
import { EventStream } from './sse.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of a completion; other routes have none. */
    record: RequestRecord | undefined;
    /** Ends the wait for the body of a completion. */
    bodyCame: () => void;
    /** Of who asks; probes have none. */
    identity: Identity;
  }
}

export interface ServerParts extends AppOptions {
  /** Name of the model in the API. */
  readonly model: string;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  readonly journey: Journey;
  readonly admission: InflightRequests;
  /** Why completions would fail now; its `problem` is undefined when they would not. */
  readonly readiness: { readonly problem: string | undefined };
  readonly capacity: () => number | undefined;
  readonly keys: ApiKeys;
  /** It serves whoever is on this machine: they name it as that, and web pages that have a name point at it do not. */
  readonly localOnly: boolean;
  readonly quota: TokenQuota;
  /** Percentage of completions whose redacted text is logged. */
  readonly logSamplePercent: number;
  readonly repos: RepoParts;
}

type CompletionCall = FastifyRequest<{ Body: CompletionRequest }>;

/** `1` asks for the gateway's timeline of the request, in the event that carries the usage: where its time went. */
const TIMELINE_HEADER = 'x-llavacode-timeline';
/** Budget of a request, in ms. */
const TIMEOUT_HEADER = 'x-request-timeout-ms';
/** Names the limit that a refused request reached. The second header says the same, and goes with the next release. */
const LIMIT_HEADERS = ['x-llavacode-limit', 'x-llavacode-refused-by'];

export function createServer(parts: ServerParts): FastifyInstance {
  const app = createApp(parts, sendError);
  app.decorateRequest('record', undefined);
  app.decorateRequest('identity');
  app.decorateRequest('bodyCame');
  app.setValidatorCompiler<z.ZodType>(({ schema }) => (body) => {
    const result = schema.safeParse(body);
    return result.success ? { value: result.data } : { error: validationError(result.error) };
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'string' }, parseJson);
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
    if (parts.localOnly && !isLoopback(request.hostname.replace(/^\[|\]$/g, ''))) {
      throw new ServingError('host_not_allowed', `this gateway serves its own machine alone, not ${request.hostname}`);
    }
  });
  app.addHook('onSend', async (_, reply) => closeAfterLinger(reply.raw));
  // Before the body is read, and after the hooks that keep a request's record.
  app.addHook('preParsing', async (request) => {
    // By the route: a URL may spell its path in other ways. Probes have no key.
    const { url } = request.routeOptions;
    if (url !== undefined && !PROBES.has(url)) request.identity = parts.keys.identify(request.headers.authorization);
  });
  app.setErrorHandler(sendError);
  app.setNotFoundHandler((request) => {
    throw new ServingError('not_found', `there is no ${request.method} ${request.url.split('?')[0]}`);
  });
  addRoutes(app, parts);
  return app;
}

function addRoutes(app: FastifyInstance, parts: ServerParts): void {
  const models = () => {
    const capacity = parts.capacity();
    const own = { id: parts.model, object: 'model', created: STARTED, owned_by: 'llavacode' };
    return capacity === undefined ? own : { ...own, max_model_len: capacity };
  };
  app.post('/v1/completions', {
    schema: { body: completionBody },
    onRequest: async (request, reply) => {
      keepRecord(request, reply);
      request.bodyCame = awaitBody(request, reply, parts.limits);
    },
    preValidation: async (request) => request.bodyCame(),
    handler: (request: CompletionCall, reply) => complete(request, reply, parts),
  });
  app.get('/v1/models', async () => ({ object: 'list', data: [models()] }));
  app.get<{ Params: { id: string } }>('/v1/models/:id', async ({ params }) => {
    assertModel(params.id, parts.model);
    return models();
  });
  app.get('/livez', async () => ({ status: 'live' }));
  app.get('/readyz', async (_, reply) => {
    const { problem } = parts.readiness;
    if (problem === undefined) return { status: 'ready' };
    // It may name workers, which are nobody's business who needs a key; the log has it.
    return reply.code(503).send({ status: 'not ready', ...(parts.keys === NO_KEYS && { reason: problem }) });
  });
  app.get('/metrics', async (_, reply) => reply.type(expositionType).send(await exposition()));
  addRepoRoutes(app, parts.repos);
  addMethodNotAllowed(app, {
    '/v1/completions': 'POST',
    '/v1/models': 'GET',
    '/v1/models/:id': 'GET',
    '/livez': 'GET',
    '/readyz': 'GET',
    '/metrics': 'GET',
    '/v1/repos': 'GET',
    '/v1/repos/*': 'GET, PUT, DELETE',
  });
}

const PROBES: ReadonlySet<string> = new Set(['/livez', '/readyz']);
const STARTED = Math.floor(Date.now() / 1000);

async function complete(request: CompletionCall, reply: FastifyReply, parts: ServerParts): Promise<unknown> {
  const record = request.record!;
  const body = withStoreKey(request.body, request.identity);
  assertModel(body.model ?? parts.model, parts.model);
  const { tenant, limits } = request.identity;
  parts.quota.assertWithin(tenant, limits);
  const admitted = parts.admission.admit(admissionOf(request));
  record.timeline.mark('admitted');
  // Comes after the end of an answer too; then there is nothing left to abort.
  reply.raw.once('close', () => admitted.abort(clientGone()));
  const head: AnswerHead = {
    id: `cmpl-${request.id}`,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: parts.model,
    system_fingerprint: `fp_${parts.fingerprint.slice(0, 12)}`,
  };
  const { signal, deadlineMs } = admitted;
  if (Math.random() * 100 < parts.logSamplePercent) record.sample = new RedactedSample(body);
  const trip = { id: head.id, tenant, record, signal, deadlineMs };
  try {
    if (body.stream) return await streamed(body, head, trip, reply, parts);
    const answer = new AnswerCollector();
    const choices = await parts.journey.complete(body, { ...trip, emit: (delta) => answer.add(delta) });
    return answer.body(head, body, choices, record.usage, record.context);
  } finally {
    admitted.release();
    parts.quota.spend(tenant, limits, record.usage.total_tokens);
  }
}

/** The header counts where the body names no budget: proxies know headers. */
function admissionOf({ body, headers, identity }: CompletionCall): InflightRequest {
  const header = headers[TIMEOUT_HEADER];
  if (header !== undefined && !/^[1-9]\d{0,9}$/.test(String(header))) {
    throw new ServingError('invalid_request', `${TIMEOUT_HEADER}: ${header} is no number of milliseconds`);
  }
  const timeoutMs = body.timeoutMs ?? (header === undefined ? undefined : Number(header));
  const session = body.session === undefined ? undefined : `${identity.tenant}\n${body.session}`;
  const { tenant, limits } = identity;
  return { timeoutMs, session, tenant, maxInflight: limits.maxInflight };
}

/** The repository as the store knows it: from here on no name of a client's is left that could be another tenant's. */
function withStoreKey(body: CompletionRequest, identity: Identity): CompletionRequest {
  const { rag } = body;
  if (rag === undefined || rag.mode === 'off') return body;
  return { ...body, rag: { ...rag, repo: storeKey(identity, rag.repo, 'rag.repo') } };
}

async function streamed(
  body: CompletionRequest,
  head: AnswerHead,
  trip: Omit<RequestScope, 'emit'>,
  reply: FastifyReply,
  { journey }: ServerParts,
): Promise<void> {
  const { record } = trip;
  const events = new EventStream(reply, trip.signal);
  try {
    await journey.complete(body, {
      ...trip,
      emit: (delta) => {
        const rag = events.open ? undefined : record.context;
        return events.send(chunkBody(head, body, delta, { rag, usage: record.usage }));
      },
    });
    record.timeline.mark('last_token');
    const timeline = reply.request.headers[TIMELINE_HEADER] === '1' ? record.timeline : undefined;
    events.end(body.includeUsage ? usageBody(head, record.usage, timeline) : undefined);
  } catch (error) {
    if (!events.open) throw error;
    const failure = asServingError(error);
    record.error = failure;
    events.end(errorBody(failure, reply.request.id));
  }
}

/** Writes what is known about a completion when its answer has ended, by whichever way. */
function keepRecord(request: FastifyRequest, { raw }: FastifyReply): void {
  const record = new RequestRecord();
  request.record = record;
  raw.once('close', () => {
    if (!raw.writableEnded) record.error ??= clientGone();
    const status = record.error?.code === 'client_gone' ? record.error.kind.http : raw.statusCode;
    record.end(request.log, status);
  });
}

function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const failure = asServingError(error);
  if (request.record) request.record.error = failure;
  else if (failure.kind.http >= 500) request.log.error({ err: failure }, 'request failed');
  const draining = failure.code === 'draining';
  if (failure.retryAfterSeconds !== undefined || failure.kind.http === 429 || draining) {
    reply.header('retry-after', Math.max(1, Math.ceil(failure.retryAfterSeconds ?? 1)));
  }
  if (draining) reply.header('connection', 'close'); // the next try goes to a gateway that stays
  for (const header of LIMIT_HEADERS) if (failure.limit !== undefined) reply.header(header, failure.limit);
  reply.header('x-request-id', request.id); // the hooks of a route do not run for a URL that fits none
  void reply.code(failure.kind.http).send(errorBody(failure, request.id));
}

function parseJson(
  request: FastifyRequest,
  body: string | Buffer,
  done: (error: Error | null, value?: unknown) => void,
) {
  request.record?.timeline.mark('received');
  try {
    done(null, JSON.parse(body.toString()));
  } catch (error) {
    done(new ServingError('invalid_request', `body is no JSON: ${(error as Error).message}`));
  }
}

function assertModel(asked: string, served: string): void {
  if (asked === served) return;
  throw new ServingError('model_not_found', `model ${JSON.stringify(asked)} is not served here, ${served} is`, {
    param: 'model',
  });
}

function addMethodNotAllowed(app: FastifyInstance, routes: Readonly<Record<string, string>>): void {
  for (const [url, allowed] of Object.entries(routes)) {
    const others = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'].filter((method) => !allowed.includes(method));
    const refuse = async (request: FastifyRequest, reply: FastifyReply) => {
      reply.header('allow', allowed);
      throw new ServingError('method_not_allowed', `${url} takes ${allowed}, not ${request.method}`);
    };
    app.route({ method: others, url, onRequest: refuse, handler: refuse });
  }
}

const clientGone = () => new ServingError('client_gone', 'the client hung up');
