/**
 * The system on two hosts, as the Helm chart starts it on a cluster: every pod has an address of its own and the
 * chart's exact command line, gateways find everybody under the names of Services, and a name server of ours knows
 * those. On the first host are gateways, Redis and the indexer, on the second one all workers.
 */
import { mkdir, mkdtemp, symlink, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';
import { sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { writeSystemSecret } from '../../services/lib/process/system-secret.ts';
import type { Role } from '../../services/supervisor.ts';
import { CLI, runCli } from '../system/cli.ts';
import { findRedis, type RedisBinary } from '../system/redis.ts';
import { owner, type Tenant, writeKeys } from '../system/tenants.ts';
import { type Chart, type ChartPods, commandHere, readChart } from './chart.ts';
import { Fleet, type Member } from './fleet.ts';
import { Link } from './link.ts';
import { NameServer } from './name-server.ts';
import { type Host, NamespaceNetwork, type PodPlace } from './network.ts';
import { Pod } from './pod.ts';

export interface ClusterOptions {
  readonly bundle: string;
  /** Folder for logs and volumes. */
  readonly data: string;
  /** Name of the repository in the index, and its folder. */
  readonly repo: string;
  readonly path: string;
}

/** A pod of the system; Redis is not a member. */
interface ClusterMember extends Member {
  readonly process: Pod;
}

/** The domain of a namespace's Services, and those that names without a dot are looked for in. */
const DOMAIN = 'code.svc.cluster.local';
const SEARCHED = [DOMAIN, 'svc.cluster.local', 'cluster.local'];
/** The port of the gateway's Service. */
const SERVICE_PORT = 80;
const REDIS_PORT = 6379;
const PROBE_TIMEOUT_MS = 2_000;
const REDIS_GRACE_MS = 10_000;
/** Docker's image of Redis has this as its default: it is reached by policy, not by address. */
const REDIS_DEFAULTS = ['--protected-mode', 'no'];

interface Parts {
  readonly chart: Chart;
  readonly network: NamespaceNetwork;
  readonly hosts: { readonly near: Host; readonly far: Host };
  readonly names: NameServer;
  /** The Service of the gateways. */
  readonly service: Link;
  readonly redis: RedisBinary;
  /** Folder of everything on disk. */
  readonly root: string;
}

export class Cluster extends Fleet {
  readonly chart: Chart;
  readonly names: NameServer;
  /** The host of all workers. */
  readonly far: Host;
  readonly #parts: Parts;
  readonly #members: ClusterMember[];
  #store: Pod | undefined;
  #made = 0;

  private constructor(parts: Parts, members: ClusterMember[], tenants: readonly Tenant[]) {
    super(members, { tenants }, parts.root);
    this.#parts = parts;
    this.#members = members;
    this.chart = parts.chart;
    this.names = parts.names;
    this.far = parts.hosts.far;
    process.once('exit', this.#killAtExit);
  }

  /**
   * Starts all pods at once, as a cluster does, and indexes the repository through the gateways.
   * @returns the cluster, or in words what this machine lacks for it.
   */
  static async open({ bundle, data, repo, path }: ClusterOptions): Promise<Cluster | string> {
    const chart = await readChart();
    if (typeof chart === 'string') return chart;
    const redis = await findRedis();
    if (redis === undefined) return 'no redis-server on PATH';
    await mkdir(data, { recursive: true });
    const undo: (() => Promise<void> | void)[] = [];
    const openParts = async (): Promise<Parts> => {
      const network = await NamespaceNetwork.open();
      undo.push(() => network.close());
      const hosts = { near: await network.addHost(), far: await network.addHost() };
      const names = await NameServer.open(network.host).catch(portTaken);
      undo.push(() => names.close());
      const service = await Link.open(network.host, SERVICE_PORT).catch(portTaken);
      undo.push(() => service.close());
      const root = await mkdtemp(join(resolve(data), 'two-hosts-'));
      return { chart, network, hosts, names, service, redis, root };
    };
    const close = async () => {
      for (const each of undo.reverse()) await each();
    };
    const parts = await openParts().catch(async (error: unknown) => {
      await close();
      return ServingError.from(error);
    });
    if (parts instanceof ServingError) return parts.message;
    const tenants = [owner()];
    const cluster = new Cluster(parts, [], tenants);
    try {
      await cluster.#makeVolumes(bundle, tenants);
      const all = chart.pods.flatMap((pods) => Array.from({ length: pods.replicas }, () => cluster.add(pods.role)));
      // One that fails is why others do not become ready: nobody waits for those.
      await Promise.all([cluster.#startRedis(), ...all]);
      const keyFile = join(cluster.logs, 'client-key');
      await writeFile(keyFile, cluster.apiKey!, { mode: 0o600 });
      await runCli(['index', '--url', cluster.url, '--api-key-file', keyFile, '--name', repo, '--path', path]);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  /** Of the gateways' Service, which gives each connection to one of them. */
  override get url(): string {
    return `http://${this.#parts.service.address}`;
  }

  override of(role: Role): ClusterMember[] {
    return this.#members.filter((member) => member.role === role);
  }

  override async replays(): Promise<number> {
    const counts = this.#gateways().map((url) => this.figure(url, 'llavacode:replays_total'));
    return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
  }

  /**
   * Number of workers that every gateway uses, over all roles.
   * @param ofSilent what counts for a gateway that does not say it in time; 0 if not given.
   */
  override async usable(ofSilent = 0): Promise<number> {
    const counts = this.#gateways().map((url) => this.figure(url, 'llavacode:workers_usable').catch(() => ofSilent));
    return Math.min(...(await Promise.all(counts)));
  }

  #gateways(): string[] {
    return this.of('gateway').map(({ process }) => `http://${process.address}`);
  }

  /** Adds a pod of a role and waits until it is ready: then the name server and the Service know it. */
  async add(role: Role): Promise<ClusterMember> {
    const pods = this.chart.pods.find((each) => each.role === role)!;
    const process = this.#podOf(pods, `${role}-${this.#made++}`, await this.#join(role));
    const member: ClusterMember = { role, process, link: undefined, port: undefined };
    await mkdir(this.#volume(process.name, '/tmp'), { recursive: true });
    await mkdir(this.#volume(process.name, '/cache'), { recursive: true });
    this.#members.push(member);
    await process.start();
    this.#publish(role);
    return member;
  }

  /** Takes a pod out of its Service, and stops it as a cluster does. @throws ServingError unless it drains. */
  async delete(member: ClusterMember): Promise<void> {
    this.#members.splice(this.#members.indexOf(member), 1);
    this.#publish(member.role);
    await member.process.delete();
  }

  /** For a process that ends without closing: a namespace is there as long as a process is in it. */
  readonly #killAtExit = () => {
    for (const { process } of this.#members) process.kill();
    this.#store?.kill();
  };

  override async close(): Promise<void> {
    const { names, service, network } = this.#parts;
    await Promise.all(this.of('gateway').map(({ process }) => process.stop()));
    await Promise.all(this.#members.map(({ process }) => process.stop()));
    await this.#store?.stop();
    service.close();
    names.close();
    await network.close();
    process.off('exit', this.#killAtExit);
  }

  #join(role: Role | 'redis'): Promise<PodPlace> {
    const { network, hosts } = this.#parts;
    const isWorker = role === 'prefill' || role === 'decode' || role === 'colocated';
    const resolvConf = [`nameserver ${network.host}`, `search ${SEARCHED.join(' ')}`, 'options ndots:5', ''].join('\n');
    return (isWorker ? hosts.far : hosts.near).join(resolvConf);
  }

  /** Tells the name server and the Service which pods of a role are ready. */
  #publish(role: Role): void {
    const ready = this.of(role).filter(({ process }) => process.isReady);
    this.names.set(
      this.nameOf(role),
      ready.map(({ process }) => process.host),
    );
    if (role === 'gateway') this.#parts.service.targets = ready.map(({ process }) => process.address);
  }

  /** The whole name of a part's Service. */
  nameOf(part: Role | 'redis'): string {
    return `${this.chart.services.get(part)!}.${DOMAIN}`;
  }

  /** The folder of this machine for one that is mounted in a pod. */
  #volume(pod: string, mount: string): string {
    const isShared = mount === '/bundle' || mount.startsWith('/etc/');
    return join(this.#parts.root, isShared ? 'shared' : pod, mount);
  }

  async #makeVolumes(bundle: string, tenants: readonly Tenant[]): Promise<void> {
    const shared = (mount: string) => this.#volume('', mount);
    const folders = ['/bundle', '/etc/llavacode/rpc', '/etc/llavacode/api-keys'];
    for (const folder of folders) await mkdir(shared(folder), { recursive: true });
    await symlink(resolve(bundle), join(shared('/bundle'), 'bundle'));
    await writeSystemSecret(join(shared('/etc/llavacode/rpc'), 'secret'));
    await writeKeys(shared('/etc/llavacode/api-keys'), tenants, 'keys.json');
  }

  #podOf(pods: ChartPods, name: string, place: PodPlace): Pod {
    const { root } = this.#parts;
    const { args, env } = commandHere(pods, (mount) => this.#volume(name, mount));
    return new Pod({
      ...pods,
      name,
      place,
      command: [process.execPath, CLI, ...args],
      env,
      workingDir: root,
      isService: true,
      probe: ({ metricsAddress }) => isReady(`http://${metricsAddress}${pods.readyPath}`),
      logFile: join(root, `${name}.log`),
    });
  }

  async #startRedis(): Promise<void> {
    const { chart, redis, root } = this.#parts;
    const [, ...args] = chart.redis.args;
    const workingDir = this.#volume('redis', '/data');
    await mkdir(workingDir, { recursive: true });
    const place = await this.#join('redis');
    this.#store = new Pod({
      name: 'redis',
      place,
      command: [redis.path, ...args, ...REDIS_DEFAULTS],
      env: redis.env,
      workingDir,
      port: REDIS_PORT,
      metricsPort: REDIS_PORT,
      isService: false,
      probe: ({ host }) => listens(host, REDIS_PORT),
      preStopMs: 0,
      graceMs: REDIS_GRACE_MS,
      logFile: join(root, 'redis.log'),
    });
    await this.#store.start();
    this.names.set(this.nameOf('redis'), [place.host]);
  }
}

function portTaken(cause: unknown): never {
  throw new ServingError('config_invalid', `needs ports of its own (${(cause as Error).message})`, { cause });
}

async function isReady(url: string): Promise<boolean> {
  try {
    const answer = await sendRequest({ method: 'GET', url, signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) });
    answer.resume();
    return answer.statusCode === 200;
  } catch {
    return false;
  }
}

const listens = (host: string, port: number) =>
  new Promise<boolean>((done) => {
    const socket = connect({ host, port, timeout: PROBE_TIMEOUT_MS });
    const end = (is: boolean) => {
      socket.destroy();
      done(is);
    };
    socket.once('connect', () => end(true));
    for (const event of ['error', 'timeout']) socket.once(event, () => end(false));
  });
