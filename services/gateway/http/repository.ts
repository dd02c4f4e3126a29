/**
 * The repository that a request is about. The field `rag` of a body names it; editors cannot be taught to send that, so
 * it may also stand, in this order, before the path of the URL (`/r/REPO/v1/completions`), in the header
 * `x-llavacode-repo`, behind the model's name (`model@REPO`), or in the file of keys; or it is the one whose checkout
 * has the remote URL that the client sends. A repository that was named in one of these ways and is not known, or that
 * the key may not use, costs the request its context alone, and the answer says so.
 */
import type { IncomingMessage } from 'node:http';
import type { FastifyRequest } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
import { resolvePath } from '../../lib/rag/store/path-form.ts';
import type { Remotes } from '../context/remotes.ts';
import type { CompletionRequest, OverlayText, RagRequest } from '../request.ts';
import { type Identity, storeKey } from '../tenants/api-keys.ts';
import { repositoryIn } from './models.ts';

const PREFIX = '/r/';
const REPO_HEADER = 'x-llavacode-repo';

/** Repositories that stood before the path of a URL. */
const prefixes = new WeakMap<IncomingMessage, string>();

/** Takes `/r/REPO` off the URLs of routes. The name may have slashes, as they are or as %2F. */
export class RepositoryPrefix {
  readonly #routes = new Map<string, RegExp>();

  /** @param url of a route, as fastify writes it. */
  knows(url: string): void {
    const escaped = url.replace(/[.+?^${}()|[\]\\]/g, '\\$&');
    this.#routes.set(url, new RegExp(`^${escaped.replace(/:[A-Za-z]+/g, '[^/]+').replaceAll('*', '.+')}/?$`));
  }

  /** The URL by which the route is found. Of two ways to divide it the shorter name counts. */
  rewrite(request: IncomingMessage): string {
    const { url = '/' } = request;
    if (!url.startsWith(PREFIX)) return url;
    const [path] = url.split('?', 1) as [string];
    for (let end = path.indexOf('/', PREFIX.length + 1); end > 0; end = path.indexOf('/', end + 1)) {
      const rest = path.slice(end);
      if (end > MOST_PREFIX) break;
      if (![...this.#routes.values()].some((route) => route.test(rest))) continue;
      prefixes.set(request, decoded(path.slice(PREFIX.length, end)));
      return url.slice(end);
    }
    return url;
  }
}

/** Characters of a URL in which a name is looked for: 200, each percent-encoded. */
const MOST_PREFIX = 3 * 200 + PREFIX.length;

/** A name that cannot be decoded stays as it is: it is not that of a repository. */
function decoded(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

/** A request and the repository that its model's name ends with. @param served name of the served model. */
export function withoutModelRepo(request: CompletionRequest, served: string): CompletionRequest {
  const repository = request.model === undefined ? undefined : repositoryIn(request.model, served);
  return repository === undefined ? request : { ...request, model: served, repository };
}

/** The name that stands in the URL, a header, the model's name or the file of keys; undefined where none does. */
function namedRepository({ raw, headers, identity }: FastifyRequest, ofBody: string | undefined): string | undefined {
  const header = headers[REPO_HEADER];
  const named = [prefixes.get(raw), typeof header === 'string' ? header : undefined, ofBody, identity.defaultRepo];
  return named.find((name) => name !== undefined && name !== '');
}

/**
 * The request with what it asks for of a repository, as the store knows it: a name that a client gave could be another
 * tenant's.
 * @param signal ends the look for a remote URL.
 * @throws ServingError invalid_request, repo_not_found for a repository that `rag` names; the signal's reason.
 */
export async function withRepository(
  http: FastifyRequest,
  request: CompletionRequest,
  remotes: Pick<Remotes, 'find'>,
  signal: AbortSignal,
): Promise<CompletionRequest> {
  const { rag } = request;
  if (rag?.mode === 'off' || rag?.repo) return request; // see `withStoreKey`
  const asked = rag ?? editorsRag(request);
  const { identity } = http;
  const named = namedRepository(http, request.repository);
  const key = named === undefined ? undefined : keyOf(identity, named);
  const byUrl = named === undefined && request.gitUrl !== undefined;
  const found = byUrl ? await remotes.find(request.gitUrl!, identity, signal) : key;
  const isAsked = named !== undefined || byUrl;
  if (!isAsked && !request.overlay?.length) {
    if (rag === undefined) return request;
    throw new ServingError('invalid_request', 'rag.repo: is required unless rag.mode is off', { param: 'rag.repo' });
  }
  // Several prompts have several contexts, and an echo is of the prompt as it was sent.
  if (rag === undefined && (request.prompts.length > 1 || request.echo)) return request;
  return { ...request, rag: { ...asked, repo: found, isOptional: true, isUnknown: isAsked && found === undefined } };
}

/** Names the repository that the body asks for as the store knows it. @throws ServingError as {@link storeKey}. */
export function withStoreKey(request: CompletionRequest, identity: Identity): CompletionRequest {
  const { rag } = request;
  if (!rag?.repo || rag.mode === 'off') return request;
  return { ...request, rag: { ...rag, repo: storeKey(identity, rag.repo, 'rag.repo') } };
}

/** undefined for a name that is none, or that the key may not use. */
function keyOf(identity: Identity, name: string): string | undefined {
  try {
    return storeKey(identity, name, 'repo');
  } catch {
    return undefined;
  }
}

/** What a request asks for that has no field `rag`: the defaults of that field. */
const editorsRag = ({ filePath }: CompletionRequest): RagRequest => ({
  repo: undefined,
  mode: 'compressed',
  topK: 10,
  path: filePath,
  retriever: undefined,
  maxTextTokens: 512,
});

/** Name of a text without a name that has a normal form. */
const UNNAMED = 'unnamed';

/** A text that an editor holds, under the normal form of its path. @param isPart whether it is a part of its file. */
export const overlayText = (path: string, text: string, isPart = false): OverlayText => ({
  path: resolvePath(path) ?? UNNAMED,
  text,
  isPart,
});
