/**
 * The URLs by which a setting names a Redis server, or several as they are run in production. `s` after `redis` means
 * TLS; user, password and parameters are percent-encoded.
 *
 *   redis[s]://[user:password@]host[:port][/db]
 *   redis[s]+sentinel://[user:password@]host[:port],host[:port]…/master[/db]
 *   redis[s]+cluster://[user:password@]host[:port],host[:port]…
 *
 * Parameters:
 *   `ca`                                   PEM file of the authority behind the server's certificate, unless public
 *   `cert`, `key`                          PEM files of the certificate that we show, if the server asks for one
 *   `sentinel_user`, `sentinel_password`   login at the sentinels, if they ask for one of their own
 */
import { ServingError } from '../process/errors.ts';
import { type HostPort, parseHostPort } from '../process/host-port.ts';

export interface RedisAddress {
  readonly kind: 'single' | 'sentinel' | 'cluster';
  readonly tls: boolean;
  /** The server itself, or the sentinels or cluster nodes to ask first. */
  readonly nodes: readonly HostPort[];
  readonly username: string | undefined;
  readonly password: string | undefined;
  /** Name of the master, if sentinels are asked for it. */
  readonly master: string | undefined;
  readonly db: number;
  readonly caFile: string | undefined;
  /** Given with `keyFile` or not at all. */
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  readonly sentinelUsername: string | undefined;
  readonly sentinelPassword: string | undefined;
  /** The URL without credentials and parameters, for messages. */
  readonly shown: string;
}

const URL_FORM =
  /^redis(?<tls>s?)(?:\+(?<kind>sentinel|cluster))?:\/\/(?:(?<login>[^@/?#]*)@)?(?<nodes>[^@/?#]+)(?:\/(?<path>[^?#]*))?(?:\?(?<query>[^#]*))?$/;
const PARAMETERS = ['ca', 'cert', 'key', 'sentinel_user', 'sentinel_password'];
const DEFAULT_PORT = { single: 6379, cluster: 6379, sentinel: 26379 };

/** Whether a setting means a Redis server in one of these forms, rather than another kind of address. */
export const isRedisUrl = (text: string) => /^rediss?(\+(sentinel|cluster))?:\/\/./.test(text);

/** @throws ServingError config_invalid, whose message repeats nothing that may be a password. */
export function parseRedisUrl(url: string): RedisAddress {
  const { tls, kind: scheme, login, nodes: list, path = '', query } = URL_FORM.exec(url)?.groups ?? {};
  if (list === undefined) throw invalid('its form is none of these');
  const kind = (scheme ?? 'single') as RedisAddress['kind'];
  const nodes = list.split(',').map((node) => parseNode(node, DEFAULT_PORT[kind]));
  if (kind === 'single' && nodes.length > 1) throw invalid('several hosts need redis+sentinel:// or redis+cluster://');
  const parts = path === '' ? [] : path.split('/').map(decoded);
  const master = kind === 'sentinel' ? parts.shift() : undefined;
  if (kind === 'sentinel' && !master) throw invalid('the name of the master is missing at its end: …/master');
  const [db = '0', ...rest] = parts;
  if (!/^\d{1,4}$/.test(db) || rest.length > 0) throw invalid('the path is not a database number');
  if (kind === 'cluster' && Number(db) !== 0) throw invalid('a cluster has only database 0');
  const parameters = new URLSearchParams(query);
  const unknown = [...parameters.keys()].find((name) => !PARAMETERS.includes(name));
  if (unknown !== undefined)
    throw invalid(`parameter ${JSON.stringify(unknown)} is not one of ${PARAMETERS.join(', ')}`);
  const [caFile, certFile, keyFile] = ['ca', 'cert', 'key'].map((name) => parameters.get(name) ?? undefined);
  if ((certFile === undefined) !== (keyFile === undefined)) throw invalid('cert and key must be given together');
  if (tls === '' && (caFile ?? certFile) !== undefined) throw invalid('ca, cert and key need TLS: rediss://');
  const [username, ...password] = login?.split(':') ?? [];
  return {
    kind,
    tls: tls === 's',
    nodes,
    username: username ? decoded(username) : undefined,
    password: password.length > 0 ? decoded(password.join(':')) : undefined,
    master,
    db: Number(db),
    caFile,
    certFile,
    keyFile,
    sentinelUsername: parameters.get('sentinel_user') ?? undefined,
    sentinelPassword: parameters.get('sentinel_password') ?? undefined,
    shown: `redis${tls}${scheme ? `+${scheme}` : ''}://${list}${path === '' ? '' : `/${path}`}`,
  };
}

function parseNode(text: string, defaultPort: number): HostPort {
  const node = parseHostPort(text, defaultPort);
  if (node === undefined) throw invalid('a host or port is malformed');
  return node;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('a "%" is not followed by two hexadecimal digits');
  }
}

const invalid = (why: string) =>
  new ServingError(
    'config_invalid',
    `not a valid Redis URL (${why}): use redis[s]://[user:password@]host[:port][/db], ` +
      'redis[s]+sentinel://host:port,host:port/master or redis[s]+cluster://host:port,host:port',
  );
