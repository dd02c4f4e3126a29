/**
 * The HTTP server put together: what holds for every request (its id, who asks, how failures are worded), and the list
 * of routes. A further API is one file beside this one and one line in {@link addApi}.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { AuditLog } from '../../lib/process/audit-log.ts';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import { isLoopback } from '../../lib/process/exposure.ts';
import { throttled } from '../../lib/process/log.ts';
import type { FlightRecorder } from '../completion/flight-recorder.ts';
import type { RequestRecord } from '../completion/request-record.ts';
import { type ApiKeys, type Identity, NO_KEYS } from '../tenants/api-keys.ts';
import { RefusalPace } from '../tenants/refusal-pace.ts';
import { assertAccess, neededFor } from './access.ts';
import { type AdminParts, addAdminRoutes } from './admin.ts';
import { isPage } from './admin-page.ts';
import { keyOf } from './api-key.ts';
import { type AppOptions, createApp } from './app.ts';
import { Arrivals } from './arrivals.ts';
import { auditAtEnd, noteFailure } from './audit.ts';
import { assertUtf8, decodedBody, onceRead, parseJson } from './body.ts';
import { addChatRoute, type ChatParts } from './chat.ts';
import { addCompletionsRoutes, type CompletionsParts } from './completions.ts';
import { canOutlast, continueBody, isStranger, welcome } from './connections.ts';
import { addCors, PREFLIGHT_URL } from './cors.ts';
import { addDocs, isDocs } from './docs.ts';
import type { BodySchema } from './editor-body.ts';
import { asServingError, clientGone, errorBody, validationError } from './errors.ts';
import { toJson } from './json.ts';
import { LastCall } from './last-call.ts';
import { assertFewHeaders, awaitBody, closeAfterLinger, type HttpLimits } from './limits.ts';
import { addLlamaCppRoutes, type LlamaCppParts } from './llama-cpp.ts';
import { addMethodNotAllowed, collectMethods } from './methods.ts';
import { addMistralRoutes } from './mistral.ts';
import { addModelRoutes, type ModelParts } from './models.ts';
import { addOllamaRoutes, type OllamaParts } from './ollama.ts';
import { addProbeRoutes, type ProbeParts } from './probes.ts';
import { addRepoRoutes, type RepoParts } from './repos.ts';
import { RepositoryPrefix } from './repository.ts';
import { addRolloutRoutes, type RolloutRouteParts } from './rollout.ts';
import type { Scrapers } from './scrapers.ts';
import type { HttpConfig } from './settings.ts';
import { addTabbyRoutes, type TabbyParts } from './tabby.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** The record of a completion; undefined on other routes. */
    record: RequestRecord | undefined;
    /** The tenant that sends the request; not set on routes that need no key. */
    identity: Identity;
  }
  interface FastifyInstance {
    /** Whether answers may name addresses and paths of the system's inside (errors.ts). */
    tellsInside: boolean;
    lastCall: LastCall;
    refusalPace: RefusalPace;
    /** Keeps completions for the operator page; undefined where there is none. */
    flights: FlightRecorder | undefined;
  }
  interface FastifyContextConfig {
    /** The route needs no API key; all others are listed in access.ts. */
    needsNoKey?: boolean;
    /** Where a gateway has scrapers, they alone may use the route. */
    isScraped?: boolean;
    /** The route's handler reads the body, for as long as --upload-timeout-ms. */
    takesUploads?: boolean;
  }
}

export interface ServerParts
  extends Omit<AppOptions, 'arrivals' | 'lastCall'>,
    AdminParts,
    ChatParts,
    CompletionsParts,
    LlamaCppParts,
    ModelParts,
    OllamaParts,
    ProbeParts,
    RepoParts,
    RolloutRouteParts,
    TabbyParts,
    Pick<HttpConfig, 'refusalsPerSecond' | 'corsOrigins'> {
  readonly keys: ApiKeys;
  readonly audit: AuditLog;
  /** Who may read /metrics; undefined leaves that to the keys. */
  readonly scrapers?: Scrapers | undefined;
  /**
   * The gateway serves this machine alone: a request must name it as such. A web page whose own host name was pointed
   * at this machine (DNS rebinding) does not. A request without any Host is served: it is a probe of HTTP/1.0, and no
   * browser sends that.
   */
  readonly localOnly: boolean;
}

/** Name the limit that a refused request reached. The second header says the same, and goes with the next release. */
const LIMIT_HEADERS = ['x-llavacode-limit', 'x-llavacode-refused-by'];

/** Refused keys get at most one line of the log in this time, in ms. */
const REFUSALS_EVERY_MS = 1_000;

export function createServer(parts: ServerParts): FastifyInstance {
  const prefix = new RepositoryPrefix();
  const arrivals = new Arrivals();
  const lastCall = new LastCall(parts.draining);
  const app = createApp({ ...parts, arrivals, lastCall }, sendError, (raw) => prefix.rewrite(raw));
  app.addHook('onRoute', ({ url }) => prefix.knows(url));
  app.decorateRequest('record', undefined);
  app.decorateRequest('identity');
  app.decorate('tellsInside', parts.keys === NO_KEYS);
  app.decorate('flights', parts.operator?.flights);
  app.decorate('lastCall', lastCall);
  app.decorate('refusalPace', new RefusalPace(parts.refusalsPerSecond));
  app.setValidatorCompiler<BodySchema<unknown>>(({ schema }) => (body) => {
    const result = schema.safeParse(body);
    return result.success ? { value: result.data } : { error: validationError(result.error) };
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (request: FastifyRequest, body: Buffer) => {
    request.record?.timeline.mark('received');
    return parseJson(body);
  });
  app.setReplySerializer(toJson);
  addRequestHooks(app, parts, arrivals);
  app.setErrorHandler(sendError);
  app.setNotFoundHandler((request) => {
    throw notFound(request);
  });
  addRoutes(app, parts);
  return app;
}

function addRequestHooks(app: FastifyInstance, parts: ServerParts, arrivals: Arrivals): void {
  const keyRefused = throttled(REFUSALS_EVERY_MS, (refusal: object, requests: number) =>
    parts.log.warn({ ...refusal, requests }, 'API key refused'),
  );
  const bodyArrived = new WeakMap<FastifyRequest, () => void>();
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
    if (parts.keys === NO_KEYS) welcome(request.raw);
    if (!request.routeOptions.config.takesUploads) bodyArrived.set(request, awaitBody(request, reply, parts));
    assertFewHeaders(request);
    if (
      parts.localOnly &&
      request.headers.host !== undefined &&
      !isLoopback(request.hostname.replace(/^\[|\]$/g, ''))
    ) {
      throw new ServingError('host_not_allowed', `this gateway serves its own machine alone, not ${request.hostname}`);
    }
  });
  // Keys are checked before the body is read, and after the hooks of a route: its refusals are recorded too.
  app.addHook('preParsing', async (request, reply, payload) => {
    if (reply.raw.destroyed) throw clientGone(); // while the request waited for its turn
    // The route decides, not the URL, which may spell its path in other ways.
    const { url, config } = request.routeOptions;
    if (url === undefined) throw notFound(request);
    if (!config.needsNoKey) {
      try {
        const key = keyOf(request);
        if (config.isScraped && parts.scrapers) parts.scrapers.assertMayScrape(key, request.ip);
        else {
          request.identity = parts.keys.identify(key);
          if (key !== undefined && parts.keys !== NO_KEYS) arrivals.knows(key, request.identity.tenant);
          auditAtEnd(request, reply, parts.audit);
        }
        welcome(request.raw);
        if (request.identity !== undefined) assertAccess(request.identity, request.method, url);
      } catch (error) {
        keyRefused({ request_id: request.id, client: request.ip, reason: ServingError.from(error).message });
        throw error;
      }
    }
    assertUtf8(request);
    const body = decodedBody(request, reply, payload);
    onceRead(body, () => continueBody(request.raw));
    return body;
  });
  app.addHook('preValidation', async (request) => bodyArrived.get(request)?.());
  app.addHook('onSend', async (request, reply) => {
    announceIdleTime(request, reply, parts);
    closeAfterLinger(reply.raw);
  });
}

/** Tells a client how long its connection is kept, where that is shorter than Node says. */
function announceIdleTime(request: FastifyRequest, reply: FastifyReply, { receiveTimeoutMs }: HttpLimits): void {
  if (!isStranger(request.raw) || reply.hasHeader('connection')) return;
  reply.header('keep-alive', `timeout=${Math.floor(receiveTimeoutMs / 1_000)}`);
}

const notFound = ({ method, url }: FastifyRequest) =>
  new ServingError('not_found', `there is no ${method} ${url.split('?')[0]}`);

function addRoutes(app: FastifyInstance, parts: ServerParts): void {
  app.addHook('onRoute', (route) => {
    const { method, url } = route;
    if (isDocs(url) || isPage(url) || url === PREFLIGHT_URL) route.config = { ...route.config, needsNoKey: true };
    const unlisted = route.config?.needsNoKey ? undefined : [method].flat().find((each) => !neededFor(each, url));
    if (unlisted) throw new ServingError('internal', `access.ts does not say who may use ${unlisted} ${url}`);
  });
  const methods = collectMethods(app);
  addCors(app, parts.corsOrigins);
  addDocs(app);
  // Plugins are loaded in order, so that these routes are described.
  app.register(async (scope) => addApi(scope, parts));
  addMethodNotAllowed(app, methods);
}

/** The routes of the API. */
function addApi(app: FastifyInstance, parts: ServerParts): void {
  addAdminRoutes(app, parts);
  addCompletionsRoutes(app, parts);
  addChatRoute(app, parts);
  addLlamaCppRoutes(app, parts);
  addMistralRoutes(app, parts);
  addModelRoutes(app, parts);
  addOllamaRoutes(app, parts);
  addProbeRoutes(app, parts);
  addRepoRoutes(app, parts);
  addRolloutRoutes(app, parts);
  addTabbyRoutes(app, parts);
}

function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const failure = asServingError(error);
  noteFailure(request, failure.code);
  if (request.record) request.record.failed(failure);
  else if (failure.publicMessage === undefined) request.log.error({ err: failure }, 'request failed');
  const draining = failure.code === 'draining';
  if (failure.retryAfterSeconds !== undefined || failure.kind.http === 429 || draining) {
    reply.header('retry-after', Math.max(1, Math.ceil(failure.retryAfterSeconds ?? 1)));
  }
  const holdMs = isPaced(failure, reply) ? request.server.refusalPace.refused(request.identity.tenant) : 0;
  // While draining the next try goes to a gateway that stays. Of other refusals fastify closes more than it must.
  const closes = draining || failure.code === 'request_timeout' || holdMs === undefined || !canOutlast(request.raw);
  if (closes) reply.header('connection', 'close');
  else reply.removeHeader('connection');
  for (const header of LIMIT_HEADERS) if (failure.limit !== undefined) reply.header(header, failure.limit);
  reply.header('x-request-id', request.id); // the hooks of a route do not run for a URL that fits none
  const { tellsInside } = request.server;
  const body = errorBody(failure, request.id, tellsInside);
  const words = request.routeOptions.config.wordsFailure;
  const send = () => void reply.code(failure.kind.http).send(words?.(body) ?? body);
  if (!holdMs) {
    send();
  } else {
    const held = setTimeout(send, holdMs);
    reply.raw.once('close', () => clearTimeout(held));
  }
}

/** Refusals that are not the client's doing, or come of its leaving. */
const NOT_PACED: ReadonlySet<ErrorCode> = new Set(['superseded', 'client_gone', 'draining', 'request_timeout']);

/**
 * Whether a refusal counts for the pace of its tenant. Strangers are refused at once: a connection of a stranger that
 * waited for its answer could not be closed for somebody else. A late body must find its request answered.
 */
const isPaced = ({ code, kind }: ServingError, { request, raw }: FastifyReply) =>
  kind.http < 500 && !NOT_PACED.has(code) && request.identity !== undefined && !raw.destroyed;
