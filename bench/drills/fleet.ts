/**
 * A whole system of real processes, each behind a {@link Link} of its own or, its workers, on machines of their own; whose
 * parts can be killed, stopped and cut off.
 */
import { mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Flags, type Role, ServiceProcess } from '../../services/supervisor.ts';
import { Link } from './link.ts';
import type { Network, Port } from './network.ts';

export interface FleetOptions {
  readonly bundle: string;
  /** URL of the store. */
  readonly store: string;
  /** Folder for logs. */
  readonly data: string;
  /** Workers of each pool. */
  readonly workers: number;
  /** Workers that do both halves; a pool for each half otherwise. */
  readonly colocated?: boolean;
  /** Where workers run, each on a machine of its own; all on this one otherwise. */
  readonly network?: Network;
  readonly gateway?: Flags;
}

export interface Member {
  readonly role: Role;
  readonly process: ServiceProcess;
  /** In front of it; undefined for one on a machine of its own. */
  readonly link: Link | undefined;
  /** Of its machine; undefined for one on this machine. */
  readonly port: Port | undefined;
}

/** What one process says of itself on /metrics. */
export interface Vitals {
  readonly rssBytes: number;
  /** Of JavaScript, what is dead and not yet collected included. */
  readonly heapBytes: number;
  readonly openFiles: number;
  readonly stagedBytes: number;
  readonly running: number;
}

/** Short, so that a drill is. */
export const STALL_TIMEOUT_MS = 2_000;
const LEASE_MS = 5_000;

export class Fleet {
  readonly members: readonly Member[];
  readonly #logs: string;

  private constructor(members: readonly Member[], logs: string) {
    this.members = members;
    this.#logs = logs;
  }

  static async start(options: FleetOptions): Promise<Fleet> {
    const { bundle, store, data, workers, colocated = false, network, gateway = {} } = options;
    await mkdir(data, { recursive: true });
    const logs = await mkdtemp(join(data, 'drills-'));
    const members: Member[] = [];
    const fleet = new Fleet(members, logs);
    const add = async (role: Role, index: number, flags: Flags, port?: Port) => {
      const link = port ? undefined : await Link.open();
      const place: Flags = {
        ...(port && { host: port.host, metricsHost: port.host, insecureListen: true }),
        // Decoders pull from prefill through the link too.
        ...(link && role === 'prefill' && { advertise: link.address }),
      };
      const settings = { model: bundle, port: 0, ...flags, ...place };
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
      return Promise.all(ports.map((port, i) => add(role, i, flags, port)));
    };
    try {
      const common = { threads: 1, slots: 8, capacity: 1024, metricsPort: 0, drainTimeoutMs: 10_000 };
      const prefillOnly = { kvLeaseMs: LEASE_MS };
      const decodeOnly = { queueSequences: 256 };
      const indexing = add('indexer', 0, { store, threads: 1, metricsPort: 0 });
      const prefill = colocated
        ? pool('colocated', { ...common, ...prefillOnly, ...decodeOnly })
        : pool('prefill', { ...common, ...prefillOnly });
      const decode = colocated ? prefill : pool('decode', { ...common, ...decodeOnly });
      const [prefillWorkers, decodeWorkers, indexer] = await Promise.all([prefill, decode, indexing]);
      await add('gateway', 0, {
        ...{ store, indexer, prefillWorkers: prefillWorkers.join(','), decodeWorkers: decodeWorkers.join(',') },
        ...{ threads: 1, stallTimeoutMs: STALL_TIMEOUT_MS, requestTimeoutMs: 30_000, targetTtftMs: 20_000 },
        ...{ drainTimeoutMs: 10_000, retrievalBudgetMs: 1_000, ...gateway },
      });
      return fleet;
    } catch (error) {
      await fleet.close();
      throw error;
    }
  }

  get logs(): string {
    return this.#logs;
  }

  get url(): string {
    return `http://${this.of('gateway')[0]!.process.address}`;
  }

  of(role: Role): readonly Member[] {
    return this.members.filter((member) => member.role === role);
  }

  async vitals({ process, role }: Member): Promise<Vitals | undefined> {
    const address = role === 'gateway' ? process.address : process.metricsAddress;
    try {
      const answer = await fetch(`http://${address}/metrics`, { signal: AbortSignal.timeout(2_000) });
      const text = await answer.text();
      return {
        rssBytes: sample(text, 'process_resident_memory_bytes'),
        heapBytes: sample(text, 'nodejs_heap_size_used_bytes'),
        openFiles: sample(text, 'process_open_fds'),
        stagedBytes: sample(text, 'llavacode:kv_staged_bytes'),
        running: sample(text, 'vllm:num_requests_running'),
      };
    } catch {
      return undefined; // it is down, or hangs
    }
  }

  /** Streams that went on at another worker, or began again there, since the gateway started. */
  async replays(): Promise<number> {
    return sample(await this.#gatewaysMetrics(), 'llavacode:replays_total');
  }

  /** Workers that the gateway gives work to, by role; 0 while it is gone. */
  async usable(): Promise<number> {
    return sample(await this.#gatewaysMetrics().catch(() => ''), 'llavacode:workers_usable');
  }

  async #gatewaysMetrics(): Promise<string> {
    return (await fetch(`${this.url}/metrics`)).text();
  }

  /** Whether it takes work. */
  async answers({ process, role }: Member): Promise<boolean> {
    const address = role === 'gateway' ? process.address : process.metricsAddress;
    const answer = await fetch(`http://${address}/readyz`, { signal: AbortSignal.timeout(2_000) }).catch(
      () => undefined,
    );
    await answer?.body?.cancel();
    return answer?.ok === true;
  }

  /**
   * Waits until every process answers, the gateway is ready and nothing is left of earlier requests.
   * @returns what is left after `patienceMs`, in words; '' when there is nothing.
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
  }
}

/** Value of a metric, over all its labels; 0 where there is none. */
function sample(text: string, name: string): number {
  const lines = text.split('\n').filter((line) => line.startsWith(name) && /[{ ]/.test(line[name.length] ?? ''));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}
