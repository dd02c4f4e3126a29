/**
 * How a store's URL names a Redis as it is run in production. `s` after `redis` means TLS; user, password and parameters
 * are percent-encoded.
 *
 *   redis[s]://[user:password@]host[:port][/db]
 *   redis[s]+sentinel://[user:password@]host[:port],host[:port]…/master[/db]
 *   redis[s]+cluster://[user:password@]host[:port],host[:port]…
 *
 * Parameters: `ca` (PEM file of the authority that signed the server's certificate, where it is not a public one), `cert` and
 * `key` (PEM files of the certificate that we show, where the server wants one), `sentinel_user` and `sentinel_password` (where the sentinels want a login of their own).
 */
import { ServingError } from '../process/errors.ts';

export interface RedisAddress {
  readonly kind: 'single' | 'sentinel' | 'cluster';
  readonly tls: boolean;
  /** The server, or the sentinels or cluster nodes to ask first. */
  readonly nodes: readonly { readonly host: string; readonly port: number }[];
  readonly username: string | undefined;
  readonly password: string | undefined;
  /** Of a sentinel set-up. */
  readonly master: string | undefined;
  readonly db: number;
  readonly caFile: string | undefined;
  /** Both or none. */
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  readonly sentinelUsername: string | undefined;
  readonly sentinelPassword: string | undefined;
  /** The URL without credentials and parameters, for messages. */
  readonly shown: string;
}

const URL_FORM =
  /^redis(?<tls>s?)(?:\+(?<kind>sentinel|cluster))?:\/\/(?:(?<login>[^@/?#]*)@)?(?<nodes>[^@/?#]+)(?:\/(?<path>[^?#]*))?(?:\?(?<query>[^#]*))?$/;
const NODE_FORM = /^(?:(?<name>[^\s:[\]]+)|\[(?<ipv6>[0-9a-fA-F:.]+)\])(?::(?<port>\d{1,5}))?$/;
const PARAMETERS = ['ca', 'cert', 'key', 'sentinel_user', 'sentinel_password'];
const DEFAULT_PORT = { single: 6379, cluster: 6379, sentinel: 26379 };

/** Whether a setting means a Redis server in one of these forms, rather than another kind of address. */
export const isRedisUrl = (text: string) => /^rediss?(\+(sentinel|cluster))?:\/\/./.test(text);

/** @throws ServingError config_invalid; what may be a password is not repeated. */
export function parseRedisUrl(url: string): RedisAddress {
  const { tls, kind: scheme, login, nodes: list, path = '', query } = URL_FORM.exec(url)?.groups ?? {};
  if (list === undefined) throw invalid('the form is not one of them');
  const kind = (scheme ?? 'single') as RedisAddress['kind'];
  const nodes = list.split(',').map((node) => parseNode(node, DEFAULT_PORT[kind]));
  if (kind === 'single' && nodes.length > 1) throw invalid('several hosts need redis+sentinel:// or redis+cluster://');
  const parts = path === '' ? [] : path.split('/').map(decoded);
  const master = kind === 'sentinel' ? parts.shift() : undefined;
  if (kind === 'sentinel' && !master) throw invalid('the name of the master is missing: …/master');
  const [db = '0', ...rest] = parts;
  if (!/^\d{1,4}$/.test(db) || rest.length > 0) throw invalid('the path is not a database number');
  if (kind === 'cluster' && Number(db) !== 0) throw invalid('a cluster has database 0 alone');
  const parameters = new URLSearchParams(query);
  const unknown = [...parameters.keys()].find((name) => !PARAMETERS.includes(name));
  if (unknown !== undefined)
    throw invalid(`parameter ${JSON.stringify(unknown)} is not one of ${PARAMETERS.join(', ')}`);
  const [caFile, certFile, keyFile] = ['ca', 'cert', 'key'].map((name) => parameters.get(name) ?? undefined);
  if ((certFile === undefined) !== (keyFile === undefined)) throw invalid('cert and key go together');
  if (tls === '' && (caFile ?? certFile) !== undefined) throw invalid('ca, cert and key need rediss');
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

function parseNode(text: string, defaultPort: number) {
  const { name, ipv6, port } = NODE_FORM.exec(text)?.groups ?? {};
  const host = name ?? ipv6;
  const number = port === undefined ? defaultPort : Number(port);
  if (host === undefined || number < 1 || number > 65_535) throw invalid('a host or port is malformed');
  return { host, port: number };
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
    `the store is no valid Redis URL (${why}): redis[s]://[user:password@]host[:port][/db], ` +
      'redis[s]+sentinel://host:port,host:port/master or redis[s]+cluster://host:port,host:port',
  );
