/**
 * A whole system of real processes that can be killed, stopped and cut off. Each is behind a {@link Link} of its own;
 * workers can instead run in network namespaces, as if on machines of their own.
 */
import { mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { LAG_RESOLUTION_MS } from '../../services/lib/process/loop-lag.ts';
import { IDLE } from '../../services/lib/process/priority.ts';
import { decodeNice, type Flags, type Role, ServiceProcess, WORKERS_NICE } from '../../services/supervisor.ts';
import { type Tenant, writeKeys } from '../system/tenants.ts';
import type { DrillsOptions } from './command.ts';
import { Link } from './link.ts';
import type { NamespaceNetwork, Port } from './network.ts';

export interface FleetOptions {
  readonly bundle: string;
  /** URL of the store. */
  readonly store: string;
  /** Folder for logs. */
  readonly data: string;
  /** Number of workers of each pool. */
  readonly workers: number;
  /** One pool of colocated workers, instead of a pool for prefill and one for decode. */
  readonly colocated?: boolean;
  /** Network on which workers run, each in a namespace of its own; if not given, they run on this machine. */
  readonly network?: NamespaceNetwork;
  readonly gateway?: Flags;
  /** Whether gateways and decode workers speculate; off if not given. */
  readonly speculation?: DrillsOptions['speculation'] | undefined;
  /** Settings of every service, over those of the fleet. */
  readonly each?: Flags;
  /** Gateways, behind a balancer if there are several; 1 if not given. */
  readonly gateways?: number;
  /** Tokens that one slot holds. */
  readonly capacity?: number;
  /** Slots of each prefill worker, in which the KV of prompts stays to be reused; {@link SLOTS} if not given. */
  readonly prefillSlots?: number;
  /** A bundle that is to take the place of the other: one worker of each pool and an indexer serve it beside them. */
  readonly candidate?: string | undefined;
  /** Share of the time, in percent, in which the candidate's indexer encodes; all of it if not given. */
  readonly reembedShare?: number;
  /**
   * Tenants that have keys; the fleet's own requests carry the key of the first. If not given, nobody needs a key.
   */
  readonly tenants?: readonly Tenant[];
}

export interface Member {
  readonly role: Role;
  readonly process: Pick<ServiceProcess, 'name' | 'pid' | 'address' | 'metricsAddress' | 'start' | 'restart' | 'stop'>;
  /** The link in front of the process; undefined for a process in a namespace. */
  readonly link: Link | undefined;
  /** The port of its namespace; undefined for a process on this machine. */
  readonly port: Port | undefined;
}

/** Figures that a process gives on /metrics. */
export interface Vitals {
  readonly rssBytes: number;
  /** Size of the JavaScript heap, including objects that are dead and not yet collected. */
  readonly heapBytes: number;
  /** Memory of buffers outside the heap. */
  readonly externalBytes: number;
  readonly openFiles: number;
  readonly stagedBytes: number;
  readonly running: number;
}

/** Short timeouts keep the drills short. */
export const STALL_TIMEOUT_MS = 2_000;
const LEASE_MS = 5_000;
const CAPACITY = 1024;
const SLOTS = 8;
const LOOK_TIMEOUT_MS = 2_000;

export class Fleet {
  readonly members: readonly Member[];
  readonly tenants: readonly Tenant[];
  /** Tokens that one slot holds. */
  readonly capacity: number;
  readonly #logs: string;
  /** Leads to the gateway that takes new connections; undefined where there is one alone. */
  #balancer: Link | undefined;

  protected constructor(
    members: readonly Member[],
    { tenants = [], capacity = CAPACITY }: Pick<FleetOptions, 'tenants' | 'capacity'>,
    logs: string,
  ) {
    this.members = members;
    this.tenants = tenants;
    this.capacity = capacity;
    this.#logs = logs;
  }

  static async start(options: FleetOptions): Promise<Fleet> {
    const { bundle, store, data, workers, colocated = false, network, gateway = {}, each = {}, gateways = 1 } = options;
    const { speculation = 'off' } = options;
    await mkdir(data, { recursive: true });
    const logs = await mkdtemp(join(data, 'drills-'));
    const members: Member[] = [];
    const fleet = new Fleet(members, options, logs);
    const { tenants, capacity } = fleet;
    const add = async (role: Role, index: number, flags: Flags, port?: Port) => {
      const link = port ? undefined : await Link.open();
      const place: Flags = {
        ...(port && { host: port.host, metricsHost: port.host, insecureListen: true }),
        // Decode workers pull from prefill workers through the link too.
        ...(link && role === 'prefill' && { advertise: link.address }),
      };
      const settings = { model: bundle, port: 0, ...flags, ...each, ...(role === 'gateway' && gateway), ...place };
      const process = new ServiceProcess(`${role}-${index}`, role, settings, { logs, through: port?.through });
      members.push({ role, process, link, port });
      await process.start();
      if (!link) return process.address;
      link.target = process.address;
      return link.address;
    };
    const pool = async (role: Role, flags: Flags) => {
      const ports: (Port | undefined)[] = [];
      for (let i = 0; i < workers; i++) ports.push(await network?.join());
      const ofCandidate = options.candidate && add(role, workers, { ...flags, model: options.candidate });
      const added = await Promise.all(ports.map((port, i) => add(role, i, flags, port)));
      return ofCandidate ? [...added, await ofCandidate] : added;
    };
    try {
      const keys: Flags = tenants.length > 0 ? { apiKeysFile: await writeKeys(logs, tenants) } : {};
      const common = { threads: 1, slots: SLOTS, capacity, metricsPort: 0, drainTimeoutMs: 10_000, nice: WORKERS_NICE };
      const prefillOnly = { kvLeaseMs: LEASE_MS };
      const prefillSlots = { slots: options.prefillSlots ?? SLOTS };
      const sequences = { queueSequences: 256, speculation };
      const decodeOnly = { ...sequences, nice: decodeNice(WORKERS_NICE) };
      const index = { store, threads: 1, metricsPort: 0, nice: WORKERS_NICE };
      const indexing = add('indexer', 0, index);
      // It steps back further: what it does may take as long as it likes.
      const { candidate, reembedShare = 100 } = options;
      const beside = candidate && add('indexer', 1, { ...index, model: candidate, nice: IDLE, reembedShare });
      const prefill = colocated
        ? pool('colocated', { ...common, ...prefillOnly, ...sequences })
        : pool('prefill', { ...common, ...prefillOnly, ...prefillSlots });
      const decode = colocated ? prefill : pool('decode', { ...common, ...decodeOnly });
      const [prefillWorkers, decodeWorkers, indexer] = await Promise.all([prefill, decode, indexing, beside]);
      const ofGateway = {
        store,
        indexer,
        speculation,
        prefillWorkers: prefillWorkers.join(','),
        decodeWorkers: decodeWorkers.join(','),
        threads: 1,
        stallTimeoutMs: STALL_TIMEOUT_MS,
        requestTimeoutMs: 30_000,
        targetTtftMs: 20_000,
        drainTimeoutMs: 10_000,
        retrievalBudgetMs: 1_000,
        ...keys,
      };
      for (let i = 0; i < gateways; i++) await add('gateway', i, ofGateway);
      if (gateways > 1) {
        fleet.#balancer = await Link.open();
        fleet.balance(fleet.of('gateway')[0]!);
      }
      return fleet;
    } catch (error) {
      await fleet.close();
      throw error;
    }
  }

  get logs(): string {
    return this.#logs;
  }

  get apiKey(): string | undefined {
    return this.tenants[0]?.apiKey;
  }

  get url(): string {
    return `http://${this.#balancer?.address ?? this.of('gateway')[0]!.process.address}`;
  }

  /** Sends new connections to a gateway from now on, if there are several. Those that are open stay where they are. */
  balance({ process }: Member): void {
    if (this.#balancer) this.#balancer.target = process.address;
  }

  of(role: Role): readonly Member[] {
    return this.members.filter((member) => member.role === role);
  }

  /** @returns undefined if the process is down or hangs. */
  async vitals({ process, role }: Member): Promise<Vitals | undefined> {
    const address = role === 'gateway' ? process.address : process.metricsAddress;
    try {
      const text = await this.#get(`http://${address}/metrics`);
      return {
        rssBytes: sample(text, 'process_resident_memory_bytes'),
        heapBytes: sample(text, 'nodejs_heap_size_used_bytes'),
        externalBytes: sample(text, 'nodejs_external_memory_bytes'),
        openFiles: sample(text, 'process_open_fds'),
        stagedBytes: sample(text, 'llavacode:kv_staged_bytes'),
        running: sample(text, role === 'gateway' ? 'llavacode:requests_inflight' : 'vllm:num_requests_running'),
      };
    } catch {
      return undefined;
    }
  }

  /** Number of streams that continued or began again at another worker since the gateway started. */
  async replays(): Promise<number> {
    return this.figure(this.url, 'llavacode:replays_total');
  }

  /** Number of workers that the gateway uses, over all roles; 0 while the gateway is gone. */
  async usable(): Promise<number> {
    return this.figure(this.url, 'llavacode:workers_usable').catch(() => 0);
  }

  /** The longest turn of the gateway's event loop since this was last asked, in ms. */
  async longestTurnMs(): Promise<number> {
    const longestMs = 1_000 * (await this.figure(this.url, 'nodejs_eventloop_lag_max_seconds'));
    return Math.max(0, longestMs - LAG_RESOLUTION_MS);
  }

  /** Sum of a metric of a gateway over all its labels. @param url where the gateway is. */
  protected async figure(url: string, metric: string): Promise<number> {
    return sample(await this.#get(`${url}/metrics`), metric);
  }

  /** Whether a process is ready. */
  async answers({ process, role }: Member): Promise<boolean> {
    const address = role === 'gateway' ? process.address : process.metricsAddress;
    return this.#get(`http://${address}/readyz`).then(
      () => true,
      () => false,
    );
  }

  /** @returns the text of an answer. @throws if it does not come soon, or its status is not 200. */
  async #get(url: string): Promise<string> {
    const signal = AbortSignal.timeout(LOOK_TIMEOUT_MS);
    const response = await sendRequest({ method: 'GET', url, headers: bearer(this.apiKey), signal });
    const body = await text(response);
    if (response.statusCode !== 200) throw new Error(`${url} answered ${response.statusCode}`);
    return body;
  }

  /**
   * Waits until every process is ready and holds nothing of earlier requests.
   * @returns what is left after `patienceMs`, in words; '' if nothing is.
   */
  async settle(patienceMs = 30_000): Promise<string> {
    const deadlineMs = performance.now() + patienceMs;
    for (;;) {
      const left = await this.#left();
      if (left === '' || performance.now() > deadlineMs) return left;
      await sleep(100);
    }
  }

  async #left(): Promise<string> {
    const left: string[] = [];
    for (const member of this.members) {
      const { name } = member.process;
      const vitals = await this.vitals(member);
      if (vitals === undefined) continue;
      if (vitals.stagedBytes > 0) left.push(`${name} holds ${vitals.stagedBytes} bytes of KV`);
      else if (vitals.running > 0) left.push(`${name} has ${vitals.running} requests`);
    }
    for (const member of this.members) {
      if (!(await this.answers(member))) left.push(`${member.process.name} is not ready`);
    }
    return left.join(', ');
  }

  async close(): Promise<void> {
    for (const { process } of this.of('gateway')) await process.stop();
    await Promise.all(this.members.map(({ process }) => process.stop()));
    for (const { link } of this.members) link?.close();
    this.#balancer?.close();
  }
}

/** Sum of a metric over all its labels; 0 if there is none. */
function sample(text: string, name: string): number {
  const lines = text.split('\n').filter((line) => line.startsWith(name) && /[{ ]/.test(line[name.length] ?? ''));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}
