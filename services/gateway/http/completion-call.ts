/**
 * Every route that completes something does the same around the journey, whatever its body and its answer look like: it
 * keeps one record per request, checks the model and the quota, takes a place among the requests in flight, and ends
 * all work when the client hangs up. All of that is here.
 *
 * A route translates: its schema makes a {@link CompletionRequest} of its body, and its handler words the answer.
 *
 *   app.post('/infill', { ...completionHooks, schema: { body }, handler: (request, reply) =>
 *     serveCompletion(request, reply, parts, async (call) => ...) });
 */
import type { FastifyReply, FastifyRequest } from 'fastify';
import { type ErrorCode, ServingError } from '../../lib/process/errors.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import type { InflightRequest, InflightRequests } from '../admission/inflight.ts';
import type { Acceptance } from '../completion/acceptance.ts';
import type { RequestScope } from '../completion/preparation.ts';
import { RedactedSample } from '../completion/redacted-sample.ts';
import { RequestRecord } from '../completion/request-record.ts';
import type { CompletionConfig } from '../completion/settings.ts';
import type { RecentPrompts } from '../context/recent-prompts.ts';
import type { Remotes } from '../context/remotes.ts';
import { hashOf } from '../context/sessions.ts';
import type { CompletionRequest } from '../request.ts';
import type { Arm, Rollout } from '../rollout/rollout.ts';
import { sequencesOf } from '../tenants/demand.ts';
import type { Reservation, TenantQuota } from '../tenants/tenant-quota.ts';
import type { DesiredWorkers } from '../workers/desired-workers.ts';
import { clientGone } from './errors.ts';
import { assertModel } from './models.ts';
import { withoutModelRepo, withRepository, withStoreKey } from './repository.ts';
import { withSession } from './session.ts';
import type { HttpConfig } from './settings.ts';

export interface CompletionParts extends Pick<CompletionConfig, 'logSamplePercent'>, Pick<HttpConfig, 'slowReaderMs'> {
  /** Name of the model in the API. */
  readonly modelName: string;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  /** Gives each request the bundle that serves it. */
  readonly rollout: Rollout;
  readonly inflight: InflightRequests;
  readonly quota: Pick<TenantQuota, 'reserve' | 'reserveReading'>;
  /** Is told what requests took, so that it is known how many workers they need. */
  readonly load: Pick<DesiredWorkers, 'served' | 'turnedAway'>;
  readonly acceptance: Acceptance;
  readonly remotes: Pick<Remotes, 'find'>;
  readonly recent: Pick<RecentPrompts, 'seriesOf'>;
}

export type CompletionHttpRequest = FastifyRequest<{ Body: CompletionRequest }>;

/** One completion that has been let in. */
export interface CompletionCall {
  /** The request, with the key of its repository in place of the name that the client gave. */
  readonly request: CompletionRequest;
  readonly record: RequestRecord;
  /** The bundle that serves it, from the first token to the last. */
  readonly arm: Arm;
  /** The scope of {@link Journey.complete}, without the function that takes the tokens. */
  readonly scope: Omit<RequestScope, 'emit'>;
}

/** Budget of a request, in ms. */
const TIMEOUT_HEADER = 'x-request-timeout-ms';
/** Time to first token, and time per output token, that a request hopes for, in ms, as llm-d spells them. */
const TTFT_GOAL_HEADER = 'x-llm-d-slo-ttft-ms';
const TPOT_GOAL_HEADER = 'x-llm-d-slo-tpot-ms';
/** Headers of answers. The second one is there only where the suffix was left out. */
const RAG_HEADER = 'x-llavacode-rag';
const SUFFIX_HEADER = 'x-llavacode-suffix';

/** Hooks of a route whose requests {@link serveCompletion} serves. */
export const completionHooks = {
  onRequest: async (request: FastifyRequest, reply: FastifyReply) => keepRecord(request, reply),
};

/**
 * Lets a completion in, has it answered, and gives back its place and its share of the quota.
 * @param answer completes the request and words the answer.
 * @throws ServingError model_not_found, quota_exceeded, saturated, draining, repo_not_found; whatever `answer` throws.
 */
export async function serveCompletion(
  request: CompletionHttpRequest,
  reply: FastifyReply,
  parts: CompletionParts,
  answer: (call: CompletionCall) => Promise<unknown>,
): Promise<unknown> {
  const record = request.record!;
  record.whenPrepared(() => void reply.headers(reportHeaders(record)));
  const asked = withGoals(request, withSession(request, request.body, parts.recent));
  record.askedBy(request.identity.tenant, asked.session);
  const named = withStoreKey(withoutModelRepo(asked, parts.modelName), request.identity);
  assertModel(named.model ?? parts.modelName, parts.modelName);
  record.asksFor(parts.modelName);
  const { tenant, limits } = request.identity;
  const entering = inflightRequest(request, asked);
  const place = enter(parts, entering);
  request.server.lastCall.letIn(request.raw);
  // A connection closes after the end of an answer too; then there is nothing left to abort.
  reply.raw.once('close', () => place.abort(clientGone()));
  const { signal, deadlineMs } = place;
  const arm = parts.rollout.enter({ tenant, session: entering.session, requestId: request.id });
  record.servedBy(arm.name);
  let reservation: Reservation | undefined;
  try {
    reservation = await parts.quota.reserve({ tenant, limits, session: entering.session, completion: named });
    place.supersede();
    signal.throwIfAborted();
    record.timeline.mark('admitted');
    const completion = await withRepository(request, named, parts.remotes, signal);
    const repo = completion.rag?.repo;
    if (repo !== undefined && completion.rag?.mode !== 'off') record.asksAbout(nameOf(repo));
    if (Math.random() * 100 < parts.logSamplePercent) record.attachSample(new RedactedSample(completion));
    record.trace?.asks(completion, parts.modelName, `cmpl-${request.id}`);
    const scope = { id: `cmpl-${request.id}`, tenant, record, signal, deadlineMs };
    const call = { request: completion, record, scope };
    try {
      return await answer({ ...call, arm });
    } catch (error) {
      if (arm.name === 'stable' || !isOfWorkers(error) || reply.raw.headersSent || signal.aborted) throw error;
      // Nothing of the candidate's answer is out: the whole answer can be the other bundle's.
      record.servedInstead('stable');
      return await answer({ ...call, arm: parts.rollout.fallback });
    }
  } finally {
    arm.release();
    place.release();
    reservation?.settle(record.computedTokens);
    const { promptTokens, cachedTokens, completionTokens } = record.usage;
    if (promptTokens > 0) parts.load.served(named.prompts.length, promptTokens - cachedTokens, completionTokens);
  }
}

/** @throws ServingError saturated, draining. */
function enter({ inflight, load }: CompletionParts, entering: InflightRequest) {
  try {
    return inflight.enter(entering);
  } catch (error) {
    if (ServingError.from(error).code === 'saturated') load.turnedAway();
    throw error;
  }
}

/** Failures of a candidate that its workers are to blame for, or that there are too few of them. */
const OF_WORKERS: readonly ErrorCode[] = ['no_worker', 'worker_lost', 'worker_stalled', 'runtime_failed', 'saturated'];
const isOfWorkers = (error: unknown) => OF_WORKERS.includes(ServingError.from(error).code);

/** A goal that is not a time is left to the inference gateway that it is meant for. */
function withGoals({ headers }: CompletionHttpRequest, request: CompletionRequest): CompletionRequest {
  const goalOf = (name: string) => {
    const goalMs = Number(headers[name]);
    return goalMs > 0 && Number.isFinite(goalMs) ? goalMs : undefined;
  };
  return { ...request, ttftGoalMs: goalOf(TTFT_GOAL_HEADER), tpotGoalMs: goalOf(TPOT_GOAL_HEADER) };
}

/** The timeout header counts where the body names no budget: proxies can set headers. */
function inflightRequest(
  { headers, identity, raw, server }: CompletionHttpRequest,
  body: CompletionRequest,
): InflightRequest {
  const header = headers[TIMEOUT_HEADER];
  if (header !== undefined && !/^[1-9]\d{0,9}$/.test(String(header))) {
    throw new ServingError('invalid_request', `${TIMEOUT_HEADER}: ${header} is not a number of milliseconds`);
  }
  const timeoutMs = body.timeoutMs ?? (header === undefined ? undefined : Number(header));
  const { tenant } = identity;
  // A hash, since the name leaves this process where gateways share their sessions.
  const session = body.session === undefined ? undefined : hashOf([tenant, body.session]);
  return { timeoutMs, session, tenant, sequences: sequencesOf(body), isTimely: server.lastCall.isTimely(raw) };
}

/** The one route whose requests are a chat, and not the completion of a text. */
export const CHAT_ROUTE = '/v1/chat/completions';

/** What the answer reports, for clients that look at headers: the context in the prompt, and a suffix that is not. */
function reportHeaders({ context, suffix }: RequestRecord): Record<string, string> {
  const degraded = context?.degraded === undefined ? '' : `; degraded=${context.degraded}`;
  const asked = context?.ladder === undefined ? '' : `; asked=${context.ladder.asked}`;
  return {
    ...(context && { [RAG_HEADER]: `${context.mode}; chunks=${context.chunks.length}${degraded}${asked}` }),
    ...(suffix && { [SUFFIX_HEADER]: suffix }),
  };
}

/** Writes what is known about a completion when its answer has ended, in whichever way. */
function keepRecord(request: FastifyRequest, { raw }: FastifyReply): void {
  const { id, headers, method, routeOptions, server } = request;
  const route = routeOptions.url ?? '';
  const operation = route === CHAT_ROUTE ? 'chat' : 'text_completion';
  const record = new RequestRecord({ id, headers, method, route, operation }, server.flights);
  request.record = record;
  if (record.trace) request.log = request.log.child({ trace_id: record.trace.traceId });
  raw.once('close', () => {
    // A body that is refused is refused before anything else is known of its request.
    if (request.identity !== undefined) record.ofTenant(request.identity.tenant);
    if (!raw.writableEnded && record.error === undefined) record.failed(clientGone());
    const status = record.error?.code === 'client_gone' ? record.error.kind.http : raw.statusCode;
    record.end(request.log, status);
  });
}
