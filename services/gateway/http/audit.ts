/**
 * What of the API goes into the audit log: each use of a repository, by a completion or by `/v1/repos`, and each
 * request to a route that needs access `admin`; also those that were refused. Requests without a key of the file are
 * not told apart from noise: the log has them, thinned out.
 */
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { AuditEntry, AuditLog } from '../../lib/process/audit-log.ts';
import type { ErrorCode } from '../../lib/process/errors.ts';
import { DEFAULT_TENANT, repoKey } from '../../lib/rag/store/repo-key.ts';
import { neededFor } from './access.ts';
import { ROLLOUT_URL, ROLLOUT_WORDS } from './rollout.ts';

/** What is done on the routes of repositories. */
const REPO_ACTIONS: Readonly<Record<string, string>> = {
  'GET /v1/repos': 'repo.list',
  'GET /v1/repos/*': 'repo.describe',
  'PUT /v1/repos/*': 'repo.index',
  'DELETE /v1/repos/*': 'repo.delete',
};

/** How requests failed whose answers could not say it by their status, or that have no record. */
const failures = new WeakMap<FastifyRequest, ErrorCode>();

export const noteFailure = (request: FastifyRequest, code: ErrorCode): void => void failures.set(request, code);

/** Writes the line of a request when its answer has ended. It must be known who asks. */
export function auditAtEnd(request: FastifyRequest, { raw }: FastifyReply, audit: AuditLog): void {
  raw.once('close', () => {
    const done = whatWasDone(request);
    if (done === undefined) return;
    const { tenant, keyId } = request.identity;
    const code = request.record?.error?.code ?? failures.get(request) ?? (raw.writableEnded ? 'ok' : 'client_gone');
    const by = { tenant, key: keyId ?? null, client: request.ip };
    const status = raw.headersSent ? raw.statusCode : null;
    audit.write({ outcome: code, status, request_id: request.id, ...by, ...done });
  });
}

type Done = Pick<AuditEntry, 'action' | 'repo' | 'detail'> & Partial<Pick<AuditEntry, 'outcome'>>;

function whatWasDone(request: FastifyRequest): Done | undefined {
  const { url = '' } = request.routeOptions;
  const method = request.method === 'HEAD' ? 'GET' : request.method;
  const action = REPO_ACTIONS[`${method} ${url}`];
  if (action !== undefined) {
    const { '*': name } = request.params as Readonly<Record<string, string>>;
    return { action, repo: nameIn(name), detail: {} };
  }
  const needed = neededFor(method, url);
  if (needed === 'admin' || needed === 'operator') {
    return { action: 'admin', repo: null, detail: { route: `${method} ${url}`, ...wordOf(request) } };
  }
  return ofCompletion(request);
}

/** What a rollout was told to do, if it is one of the words that it knows. */
function wordOf({ body, routeOptions }: FastifyRequest): { readonly word?: string } {
  const { action } = (body ?? {}) as { readonly action?: unknown };
  const word = routeOptions.url === ROLLOUT_URL ? ROLLOUT_WORDS.find((each) => each === action) : undefined;
  return word === undefined ? {} : { word };
}

/** undefined for a completion that asked for no repository. */
function ofCompletion({ record, body }: FastifyRequest): Done | undefined {
  if (record === undefined) return undefined;
  const { repo, context, error } = record;
  const detail = { mode: context?.mode ?? 'none', chunks: context?.chunks.length ?? 0 };
  if (repo !== undefined) return { action: 'repo.read', repo, detail };
  // The repository is not there, or is none that the key may use.
  const isRefused = error?.code === 'repo_not_found';
  if (!isRefused && context?.degraded !== 'repo_not_found') return undefined;
  const named = (body as { readonly rag?: { readonly repo?: string } } | undefined)?.rag?.repo;
  return { action: 'repo.read', repo: nameIn(named), detail, outcome: 'repo_not_found' };
}

/** A client's text goes into the log only where it is the name of a repository. */
function nameIn(text: string | undefined): string | null {
  if (text === undefined) return null;
  try {
    repoKey(DEFAULT_TENANT, text);
    return text;
  } catch {
    return null;
  }
}
