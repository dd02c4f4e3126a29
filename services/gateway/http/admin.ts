/**
 * `/admin/api`: what the operator page shows. It is of all tenants, with their names and those of their repositories,
 * so that it needs a key to which the file of keys gives access `admin` in so many words (access.ts). Live state comes
 * as one stream, and not by polling, so that an open page is one line of the audit log and not one a second.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { nameOf, repoKey, tenantOf } from '../../lib/rag/store/repo-key.ts';
import type { Store } from '../../lib/rag/store/store.ts';
import type { ApiKeys } from '../tenants/api-keys.ts';
import type { BrokenRepoBody, LeftOutBody, RepoBody, ReposBody } from './admin-answers.ts';
import { type LiveParts, liveBody, type WatchedGateway } from './admin-live.ts';
import { ADMIN_URL, addAdminPage, noPage, type PageFiles } from './admin-page.ts';
import type { BodySchema } from './editor-body.ts';
import { asServingError, clientGone, errorBody } from './errors.ts';
import { type RepoParts, repoBody, storeOf } from './repos.ts';
import { EventStream, SSE } from './sse.ts';

interface Operator extends WatchedGateway {
  readonly page: PageFiles;
}

export interface AdminParts extends LiveParts, Pick<RepoParts, 'store' | 'contextFingerprint' | 'slowReaderMs'> {
  /** undefined where the operator page is off. */
  readonly operator: Operator | undefined;
  readonly keys: ApiKeys;
  /** Aborted when the gateway takes no new work. */
  readonly draining: AbortSignal;
}

/** Pause between two events, in ms: workers are asked as often. */
const LIVE_EVERY_MS = 1_000;
/**
 * Longest time of one stream, in ms. The page then asks again, with its key: one that was taken out of the file sees
 * nothing more after that.
 */
const LIVE_FOR_MS = 600_000;
/** Streams at once: each is made anew every second. */
const MOST_STREAMS = 16;
/** Repositories of one page of the list. */
const REPOS_PER_PAGE = 100;
/** Tenants that are asked about at once, and heads that are read at once: retrievals use the same connection. */
const READS_AT_ONCE = 16;

const schemaOf = <T>(fields: z.ZodType<T>): BodySchema<T> => ({
  fields,
  safeParse: (query) => fields.safeParse(query),
});
const liveQuery = schemaOf(
  z.strictObject({
    events: z.coerce.number().int().min(1).optional().describe('ends the stream after so many events'),
  }),
);
const reposQuery = schemaOf(
  z.strictObject({ after: z.string().max(300).default('').describe('`next` of the page before') }),
);
const leftOutQuery = schemaOf(
  z.strictObject({
    tenant: z.string().max(64).describe('owner of the repository'),
    repo: z.string().max(300).describe("the tenant's name for it"),
  }),
);

export function addAdminRoutes(app: FastifyInstance, parts: AdminParts): void {
  const tags = ['operation'];
  const streams = new Set<FastifyRequest>();
  addAdminPage(app, parts.operator?.page);
  const operator = () => {
    if (parts.operator === undefined) throw noPage();
    return parts.operator;
  };
  app.get<{ Querystring: { events?: number } }>(`${ADMIN_URL}/api/live`, {
    schema: {
      querystring: liveQuery,
      summary: 'queue, workers, hand-overs and requests, each second as an event, with --admin-page',
      tags,
    },
    handler: async (request, reply) => {
      const watched = operator();
      // It has no body to stream, and its connection would wait for the end of one.
      if (request.method === 'HEAD') return reply.type(SSE.contentType).send('');
      parts.draining.throwIfAborted();
      if (streams.size >= MOST_STREAMS) {
        const message = `${MOST_STREAMS} operator pages are open at this gateway`;
        throw new ServingError('saturated', message, { retryAfterSeconds: 10 });
      }
      streams.add(request);
      try {
        await live(request, reply, parts, watched);
      } finally {
        streams.delete(request);
      }
    },
  });
  app.get<{ Querystring: { after: string } }>(`${ADMIN_URL}/api/repos`, {
    schema: {
      querystring: reposQuery,
      summary: 'indexes of the tenants that the file of keys names, with --admin-page',
      tags,
    },
    handler: async (request) => {
      operator();
      return repos(request, request.query.after, parts);
    },
  });
  app.get<{ Querystring: { tenant: string; repo: string } }>(`${ADMIN_URL}/api/left-out`, {
    schema: { querystring: leftOutQuery, summary: 'files that an index lacks, and why, with --admin-page', tags },
    handler: async ({ query }) => {
      operator();
      return leftOut(query.tenant, query.repo, parts);
    },
  });
}

/** Sends events until the reader leaves, the gateway drains or the stream has lasted long enough. */
async function live(
  request: FastifyRequest<{ Querystring: { events?: number } }>,
  reply: FastifyReply,
  parts: AdminParts,
  operator: Operator,
): Promise<void> {
  const gone = new AbortController();
  reply.raw.once('close', () => gone.abort(clientGone()));
  const over = AbortSignal.any([gone.signal, parts.draining, AbortSignal.timeout(LIVE_FOR_MS)]);
  const stream = new EventStream(reply, over, parts.slowReaderMs);
  let [left, after] = [request.query.events ?? Number.POSITIVE_INFINITY, 0];
  try {
    await repeatUntilAborted(over, async () => {
      const body = liveBody(parts, operator, after);
      after = operator.flights.last;
      await stream.send(body, true);
      return --left > 0 ? LIVE_EVERY_MS : undefined;
    });
    stream.end();
  } catch (error) {
    if (!stream.open) throw error;
    stream.end(over.aborted ? undefined : errorBody(asServingError(error), request.id, request.server.tellsInside));
  }
}

/** One page of the list. Keys of repositories are in one order over all tenants. */
async function repos({ id, server }: FastifyRequest, after: string, parts: AdminParts): Promise<ReposBody> {
  const store = storeOf(parts.store);
  const keys = (await inBatches(parts.keys.tenants, (tenant) => store.repositories(tenant))).flat();
  const wanted = keys.filter((key) => key > after).sort();
  const shown = wanted.slice(0, REPOS_PER_PAGE);
  const data = await inBatches(shown, (key) =>
    entry(store, key, parts, (error) => {
      const { code, message } = errorBody(error, id, server.tellsInside).error;
      return { code, message };
    }),
  );
  return {
    object: 'list',
    data: data.filter((each) => each !== undefined),
    next: wanted.length > shown.length ? shown.at(-1)! : null,
  };
}

/** undefined for a repository that has been removed meanwhile. */
async function entry(
  store: Store,
  key: string,
  { contextFingerprint }: AdminParts,
  worded: (error: ServingError) => BrokenRepoBody['error'],
): Promise<RepoBody | BrokenRepoBody | undefined> {
  const of = { tenant: tenantOf(key), repo: nameOf(key) };
  try {
    const head = await store.head(key, { isListed: true });
    return head && { ...repoBody(of.repo, head, contextFingerprint), ...of };
  } catch (error) {
    const failure = ServingError.from(error);
    if (failure.code !== 'store_invalid') throw error;
    return { ...of, error: worded(failure) };
  }
}

async function leftOut(tenant: string, repo: string, parts: AdminParts): Promise<LeftOutBody> {
  const missing = () => new ServingError('repo_not_found', `${tenant} has no index of ${repo}`, { param: 'repo' });
  if (!parts.keys.tenants.includes(tenant)) throw missing();
  const key = repoKey(tenant, repo);
  const store = storeOf(parts.store);
  if ((await store.head(key)) === undefined) throw missing();
  const found = await store.leftOut(key);
  return {
    object: 'admin.left_out',
    tenant,
    repo,
    counts: found?.counts ?? null,
    files: (found?.files ?? []).map(([path, reason]) => ({ path, reason })),
  };
}

async function inBatches<T, R>(items: readonly T[], task: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let start = 0; start < items.length; start += READS_AT_ONCE) {
    results.push(...(await Promise.all(items.slice(start, start + READS_AT_ONCE).map(task))));
  }
  return results;
}
