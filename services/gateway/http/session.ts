/**
 * The session of a request: one window of an editor. The body's `session` names it, or the header `x-session-id`: then
 * a newer request takes the place of an older one. Where nothing names it, requests of one client that go on where the
 * last one was make a series: they find their worker and their context again, and no request ends another one.
 */
import type { FastifyRequest } from 'fastify';
import type { RecentPrompts } from '../context/recent-prompts.ts';
import { hashOf } from '../context/sessions.ts';
import type { CompletionRequest } from '../request.ts';

const SESSION_HEADER = 'x-session-id';

/** The request with its session, or with the series that it belongs to. */
export function withSession(
  { headers, identity, ip }: Pick<FastifyRequest, 'headers' | 'identity' | 'ip'>,
  request: CompletionRequest,
  recent: Pick<RecentPrompts, 'seriesOf'>,
): CompletionRequest {
  const { slot, prompts, cacheSalt } = request;
  const header = headers[SESSION_HEADER];
  const named = typeof header === 'string' && header !== '' ? header : undefined;
  const session = request.session ?? named;
  if (session !== undefined) return { ...request, session };
  // Other clients have slots of the same number, and prompts that begin alike.
  const client = hashOf([identity.keyId, ip, cacheSalt]);
  if (slot !== undefined) return { ...request, series: hashOf([client, 'slot', slot]) };
  const [prompt] = prompts;
  if (prompts.length > 1 || prompt === undefined) return request;
  const series = recent.seriesOf(identity.tenant, client, prompt);
  return series === undefined ? request : { ...request, series: hashOf([client, series]) };
}
