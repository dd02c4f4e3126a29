/** Redis as in production, on one machine: a cluster, a master with sentinels, TLS, and a slow network. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { freePort, type RedisServer, redisCli, startRedis } from './redis.ts';

const run = promisify(execFile);

export interface Topology {
  readonly url: string;
  readonly servers: readonly RedisServer[];
  stop(): Promise<void>;
}

/** Three masters that share the slots. */
export async function startCluster(): Promise<Topology> {
  const node = () =>
    startRedis(async () => [
      ...['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000', '--cluster-port', `${await freePort()}`],
      // A cluster without one of its masters serves the slots of the others.
      ...['--cluster-require-full-coverage', 'no'],
    ]);
  const servers = await Promise.all([node(), node(), node()]);
  const nodes = servers.map(({ port }) => `127.0.0.1:${port}`);
  await redisCli(servers[0]!.port, '--cluster', 'create', ...nodes, '--cluster-yes');
  return { url: `redis+cluster://${nodes.join(',')}`, servers, stop: () => stopAll(servers) };
}

/** A master, its replica, and a sentinel that promotes the replica when the master is gone. */
export async function startSentinel(): Promise<Topology> {
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
  return { url: `redis+sentinel://127.0.0.1:${sentinel.port}/shop`, servers, stop: () => stopAll(servers) };
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
