/**
 * What a key must be allowed to do for each route: the one table, checked in one place (server.ts). A gateway with a
 * route that is neither listed here nor open to everybody does not start.
 */
import { ServingError } from '../../lib/process/errors.ts';
import { ACCESS_LEVELS, type Access, type Identity } from '../tenants/api-keys.ts';

/**
 * `operator` is access `admin` that the file of keys gives in so many words: a key whose entry says nothing has `admin`
 * as well, since there were keys before there were levels, and editors have such keys.
 */
type Needed = Access | 'operator';

const NEEDED: Readonly<Record<string, Needed>> = {
  'POST /v1/completions': 'complete',
  'POST /infill': 'complete',
  'POST /completion': 'complete',
  'POST /api/generate': 'complete',
  'POST /api/show': 'complete',
  'GET /api/tags': 'complete',
  'GET /api/version': 'complete',
  'POST /v1/fim/completions': 'complete',
  'POST /fim/completions': 'complete',
  'POST /v1/chat/completions': 'complete',
  'POST /v1/engines/:engine/completions': 'complete',
  'POST /beta/completions': 'complete',
  'GET /v1/health': 'complete',
  'POST /v1/health': 'complete',
  'POST /v1/events': 'complete',
  'POST /tokenize': 'complete',
  'POST /detokenize': 'complete',
  'GET /props': 'complete',
  'GET /v1/models': 'complete',
  'GET /v1/models/:id': 'complete',
  'GET /version': 'complete',
  // An editor asks which repositories there are, and whether their index is stale.
  'GET /v1/repos': 'complete',
  'GET /v1/repos/*': 'complete',
  'PUT /v1/repos/*': 'index',
  'DELETE /v1/repos/*': 'index',
  // Figures of all tenants together, with the tenants' names.
  'GET /metrics': 'admin',
  'GET /slots': 'admin',
  // They decide which model everybody gets, and name folders of the machine.
  'GET /v1/rollout': 'admin',
  'POST /v1/rollout': 'admin',
  // Names of all tenants and repositories, and who asks for what when.
  'GET /admin/api/live': 'operator',
  'GET /admin/api/repos': 'operator',
  'GET /admin/api/left-out': 'operator',
};

/** The access that a route needs; undefined for one that is not listed. HEAD needs what GET needs. */
export const neededFor = (method: string, url: string): Needed | undefined =>
  NEEDED[`${method === 'HEAD' ? 'GET' : method} ${url}`];

/** @throws ServingError access_denied */
export function assertAccess({ access, isOperator }: Identity, method: string, url: string): void {
  const needed = neededFor(method, url) ?? 'admin';
  if (needed === 'operator') {
    if (isOperator) return;
    const message = `${method} ${url} needs a key whose entry in the file of keys says "access": "admin"`;
    throw new ServingError('access_denied', message);
  }
  if (ACCESS_LEVELS.indexOf(access) >= ACCESS_LEVELS.indexOf(needed)) return;
  const message = `${method} ${url} needs a key with access "${needed}", and this one has "${access}"`;
  throw new ServingError('access_denied', message);
}
