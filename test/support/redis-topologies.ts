/**
 * Redis as in production, on one machine: a cluster, a master with sentinels, an address that moves from a master to
 * its replica, TLS, and a slow network.
 */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { vi } from 'vitest';
import { freePort, type RedisServer, redisCli, startRedis } from './redis.ts';

const run = promisify(execFile);

export interface Topology {
  readonly url: string;
  readonly servers: readonly RedisServer[];
  stop(): Promise<void>;
}

/** A topology with replicas, in which every master can be told to give its place to a replica. */
export interface FailoverTopology extends Topology {
  /**
   * What the replicas have not received is waited for. Resolves when the replicas are masters and the masters
   * replicas.
   */
  failOver(): Promise<void>;
  /** Runs redis-cli on the master (of the key's slot, if it is a cluster). */
  cli(...args: readonly string[]): Promise<string>;
}

/** Longer than any failover takes. */
const SOON = { timeout: 120_000, interval: 20 };

/** Waits until a replica has all that its master has. */
async function inStep(master: RedisServer, replica: RedisServer): Promise<void> {
  const offset = async ({ port }: RedisServer, name: string) =>
    Number(new RegExp(`^${name}:(\\d+)`, 'm').exec(await redisCli(port, 'INFO', 'replication'))?.[1] ?? -1);
  const wanted = await offset(master, 'master_repl_offset');
  await vi.waitUntil(async () => (await offset(replica, 'slave_repl_offset')) >= wanted, SOON);
}

/** The role of a server; '' while it does not answer, as one that is being replaced. */
const roleOf = (port: number) => redisCli(port, 'ROLE').catch(() => '');

const roleIs = ({ port }: RedisServer, role: 'master' | 'slave') =>
  vi.waitUntil(async () => (await roleOf(port)).startsWith(role), SOON);

export interface MovingAddress {
  readonly url: string;
  /** Connections that were made to each port, by port. */
  readonly accepted: ReadonlyMap<number, number>;
  /** Port that new connections lead to. Those that are open stay where they are. */
  target: number;
  stop(): Promise<void>;
}

/** One address for whichever server is the master: a virtual IP, a balancer's, a Service's, a DNS name. */
export async function startMovingAddress(target: number): Promise<MovingAddress> {
  const accepted = new Map<number, number>();
  const sockets = new Set<Socket>();
  const proxy = createServer((client) => {
    accepted.set(address.target, (accepted.get(address.target) ?? 0) + 1);
    const server = connect(address.target, '127.0.0.1');
    for (const socket of [client, server]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        client.destroy();
        server.destroy();
      });
    }
    client.pipe(server);
    server.pipe(client);
  }).listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  const address: MovingAddress = {
    url: `redis://127.0.0.1:${(proxy.address() as { port: number }).port}`,
    accepted,
    target,
    async stop() {
      for (const socket of sockets) socket.destroy();
      proxy.close();
      await once(proxy, 'close');
    },
  };
  return address;
}

/** A master and its replica behind one address. */
export async function startReplicated(): Promise<
  FailoverTopology & { readonly address: MovingAddress; demote(): Promise<void> }
> {
  const delay = ['--repl-diskless-sync-delay', '0'];
  const first = await startRedis(delay);
  const second = await startRedis([...delay, '--replicaof', '127.0.0.1', `${first.port}`]);
  const address = await startMovingAddress(first.port);
  let [master, replica] = [first, second];
  await vi.waitUntil(
    async () => /master_link_status:up/.test(await redisCli(replica.port, 'INFO', 'replication')),
    SOON,
  );
  /** Changes the roles, and leaves the address where it was. */
  const demote = async () => {
    await inStep(master, replica);
    await redisCli(replica.port, 'REPLICAOF', 'NO', 'ONE');
    await redisCli(master.port, 'REPLICAOF', '127.0.0.1', `${replica.port}`);
    [master, replica] = [replica, master];
  };
  return {
    url: address.url,
    servers: [first, second],
    address,
    demote,
    async failOver() {
      await demote();
      address.target = master.port;
    },
    cli: (...args) => redisCli(master.port, ...args),
    async stop() {
      await address.stop();
      await stopAll([first, second]);
    },
  };
}

/**
 * Makes a replica of a cluster the master of its slots. That is refused until every node knows the others, and given up
 * after 5 s if not enough of them vote: then it is asked for again.
 */
async function promote(replica: RedisServer): Promise<void> {
  let askedAtMs = -Infinity;
  await vi.waitUntil(async () => {
    if ((await roleOf(replica.port)).startsWith('master')) return true;
    if (performance.now() - askedAtMs > 6_000 && (await redisCli(replica.port, 'CLUSTER', 'FAILOVER')) === 'OK') {
      askedAtMs = performance.now();
    }
    return false;
  }, SOON);
}

/** Three masters that share the slots. @param replicas of each. */
export async function startCluster(replicas = 0): Promise<FailoverTopology> {
  const node = () =>
    startRedis(async () => [
      ...['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000', '--cluster-port', `${await freePort()}`],
      // A cluster without one of its masters serves the slots of the others.
      ...['--cluster-require-full-coverage', 'no'],
    ]);
  const servers = await Promise.all(Array.from({ length: 3 * (1 + replicas) }, node));
  const nodes = servers.map(({ port }) => `127.0.0.1:${port}`);
  const [anyPort] = servers.map(({ port }) => port) as [number];
  await redisCli(anyPort, '--cluster', 'create', ...nodes, '--cluster-replicas', `${replicas}`, '--cluster-yes');
  return {
    url: `redis+cluster://${nodes.join(',')}`,
    servers,
    async failOver() {
      const roles = await Promise.all(servers.map(({ port }) => roleOf(port)));
      for (const [i, role] of roles.entries()) {
        if (!role.startsWith('slave')) continue;
        await promote(servers[i]!);
      }
    },
    cli: (...args) => redisCli(anyPort, '-c', ...args),
    stop: () => stopAll(servers),
  };
}

/** A master, its replica, and a sentinel that promotes the replica when the master is gone. */
export async function startSentinel(): Promise<FailoverTopology> {
  const master = await startRedis(['--repl-diskless-sync-delay', '0']);
  const replica = await startRedis(['--replicaof', '127.0.0.1', `${master.port}`, '--repl-diskless-sync-delay', '0']);
  const sentinel = await startRedis(async (port, dir) => {
    const file = join(dir, 'sentinel.conf');
    const settings = [
      `sentinel monitor shop 127.0.0.1 ${master.port} 1`,
      'sentinel down-after-milliseconds shop 300',
      'sentinel failover-timeout shop 2000',
    ];
    await writeFile(file, [`port ${port}`, 'bind 127.0.0.1', `dir ${dir}`, ...settings].join('\n'));
    return [file, '--sentinel'];
  });
  const servers = [master, replica, sentinel];
  const current = async () =>
    (await redisCli(sentinel.port, 'SENTINEL', 'get-master-addr-by-name', 'shop')).split('\n')[1];
  return {
    url: `redis+sentinel://127.0.0.1:${sentinel.port}/shop`,
    servers,
    async failOver() {
      const before = await current();
      const [from, to] = before === `${master.port}` ? [master, replica] : [replica, master];
      // A sentinel that does not know of the replica yet refuses.
      await vi.waitUntil(async () => {
        await inStep(from, to);
        return (await redisCli(sentinel.port, 'SENTINEL', 'FAILOVER', 'shop')) === 'OK';
      }, SOON);
      await vi.waitUntil(async () => (await current()) !== before, SOON);
      await Promise.all([roleIs(to, 'master'), roleIs(from, 'slave')]);
    },
    cli: async (...args) => redisCli(Number(await current()), ...args),
    stop: () => stopAll(servers),
  };
}

/**
 * A server that speaks only TLS, with a certificate that only `ca` vouches for.
 * @param clients whether it asks clients for a certificate; `ca` with `key` is one.
 */
export async function startTls(
  clients: 'yes' | 'no' = 'no',
): Promise<Topology & { readonly ca: string; readonly key: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-tls-'));
  const [ca, key] = [join(dir, 'cert.pem'), join(dir, 'key.pem')];
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-days', '2'];
  const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', ...subject];
  await run('openssl', [...made, '-keyout', key, '-out', ca]);
  const files = ['--tls-cert-file', ca, '--tls-key-file', key, '--tls-ca-cert-file', ca, '--tls-auth-clients', clients];
  const server = await startRedis(async (port) => ['--port', '0', '--tls-port', `${port}`, ...files]);
  const stop = async () => {
    await stopAll([server]);
    await rm(dir, { recursive: true, force: true });
  };
  return { url: `rediss://localhost:${server.port}`, ca, key, servers: [server], stop };
}

const stopAll = async (servers: readonly RedisServer[]) => {
  await Promise.all(servers.map((server) => server.stop()));
};

export interface SlowNetwork {
  readonly port: number;
  /**
   * Delay of every part of an answer, in ms. With Infinity parts are lost, and a connection that lost one stays silent.
   */
  delayMs: number;
  stop(): Promise<void>;
}

/** A proxy before a server that can hold back its answers. */
export async function startSlowNetwork(to: number): Promise<SlowNetwork> {
  const sockets = new Set<Socket>();
  const proxy = createServer((client) => {
    const server = connect(to, '127.0.0.1');
    for (const socket of [client, server]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        client.destroy();
        server.destroy();
      });
    }
    client.pipe(server);
    let dead = false;
    server.on('data', (part) => {
      dead ||= network.delayMs === Infinity;
      if (!dead) setTimeout(() => client.write(part), network.delayMs);
    });
  }).listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  const network: SlowNetwork = {
    port: (proxy.address() as { port: number }).port,
    delayMs: 0,
    async stop() {
      for (const socket of sockets) socket.destroy();
      proxy.close();
      await once(proxy, 'close');
    },
  };
  return network;
}
