/**
 * Network namespaces on a bridge, which work like machines whose cables can be pulled. Unlike a proxy, a pulled cable
 * loses every packet without a sign: there is no FIN and no RST, and the TCP of the peers has to find out. A namespace
 * can also be a host with a bridge of its own, on which pods run.
 */
import { execFile, spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { mkdir, readdir, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ServingError } from '../../services/lib/process/errors.ts';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 10_000;
const ip = (...words: string[]) => run('ip', words, { timeout: STEP_TIMEOUT_MS });
/** Here `ip netns exec` finds the files that a namespace has in place of those in /etc. */
const FILES = '/etc/netns';
/** Addresses of each host for its pods, a power of two; those of the network itself are as many, and lie below. */
const SUBNET = 64;
const PREFIX = 26;

/** A namespace in which a process can run. */
interface Place {
  /** Address of the namespace; its 127.0.0.1 is not ours. */
  readonly host: string;
  /** Words that run a command in the namespace when they precede it. */
  readonly through: readonly string[];
}

/** A namespace on the network, with a cable of its own. */
export interface Port extends Place {
  cut(): Promise<void>;
  heal(): Promise<void>;
}

/** The namespace of a pod. */
export interface PodPlace extends Place {
  /** Removes it. Its processes must have ended. */
  leave(): Promise<void>;
}

/** A machine on which pods run. One cable leads from it to the network. */
export interface Host extends Pick<Port, 'cut' | 'heal'> {
  /**
   * Adds a pod: a namespace with an address of its own, which all others reach by routes and without translation.
   * @param resolvConf the text of its /etc/resolv.conf.
   * @throws Error when the pod would not see that file.
   */
  join(resolvConf: string): Promise<PodPlace>;
}

export class NamespaceNetwork {
  /** Prefix of all names; the name of an interface has at most 15 letters. */
  readonly #name: string;
  /** First three bytes of all addresses, from the range reserved for benchmarks of networks. */
  readonly #net: string;
  /** Commands that remove what is there, the latest last. */
  readonly #undo = new Set<readonly string[]>();
  /** Folders of files that namespaces have of their own. */
  readonly #folders = new Set<string>();
  readonly #hosts: { readonly place: string; readonly number: number; readonly subnet: string }[] = [];
  #ports = 0;

  private constructor(number: number) {
    this.#name = `lcd${number}`;
    this.#net = `198.18.${number % 256}`;
    process.once('exit', this.#removeAtExit);
  }

  /**
   * Opens a network, and removes those whose processes are gone.
   * @param number id of the process to which the network belongs.
   * @throws ServingError config_invalid if this machine does not allow it, or this user may not.
   */
  static async open(number = process.pid): Promise<NamespaceNetwork> {
    const network = new NamespaceNetwork(number);
    const bridge = `${network.#name}b`;
    try {
      await sweep();
      await ip('link', 'add', bridge, 'type', 'bridge');
      network.#undo.add(['link', 'del', bridge]);
      // The address is set because it would otherwise change with the ports.
      await ip('link', 'set', bridge, 'address', mac(1), 'up');
      await ip('address', 'add', `${network.host}/24`, 'dev', bridge);
      // Namespaces may be refused although bridges are not.
      await network.join();
      return network;
    } catch (cause) {
      await network.close();
      throw lacking(cause);
    }
  }

  /** Our own address on the network. */
  get host(): string {
    return `${this.#net}.1`;
  }

  /** Adds a namespace to this network. */
  async join(): Promise<Port> {
    const { place, host, cable } = await this.#plug();
    return { host, through: inside(place), ...cable };
  }

  /** Adds a host to this network. @throws ServingError config_invalid if this machine does not allow it. */
  async addHost(): Promise<Host> {
    try {
      const { place, number, host, cable } = await this.#plug();
      const first = SUBNET * (this.#hosts.length + 1);
      const subnet = `${this.#net}.${first}/${PREFIX}`;
      const gate = `${this.#net}.${first + 1}`;
      await run('ip', ['netns', 'exec', place, 'sh', '-c', 'echo 1 > /proc/sys/net/ipv4/ip_forward']);
      await ip('-n', place, 'link', 'add', 'br0', 'type', 'bridge');
      await ip('-n', place, 'link', 'set', 'br0', 'up');
      await ip('-n', place, 'address', 'add', `${gate}/${PREFIX}`, 'dev', 'br0');
      await ip('route', 'add', subnet, 'via', host);
      await this.#neighbour(place, 1);
      for (const other of this.#hosts) {
        const address = `${this.#net}.${other.number}`;
        await ip('-n', place, 'route', 'add', other.subnet, 'via', address);
        await ip('-n', other.place, 'route', 'add', subnet, 'via', host);
        await this.#neighbour(place, other.number);
        await this.#neighbour(other.place, number);
      }
      this.#hosts.push({ place, number, subnet });
      let pods = 0;
      return { ...cable, join: (resolvConf) => this.#addPod(place, gate, first + 2 + pods++, resolvConf) };
    } catch (cause) {
      throw lacking(cause);
    }
  }

  /** A namespace with a cable to the bridge. */
  async #plug() {
    const number = ++this.#ports + 1;
    const [place, cable, bridge] = [`${this.#name}n${number}`, `${this.#name}v${number}`, `${this.#name}b`];
    const host = `${this.#net}.${number}`;
    await ip('netns', 'add', place);
    this.#undo.add(['netns', 'del', place]);
    await ip('link', 'add', cable, 'type', 'veth', 'peer', 'name', 'eth0', 'address', mac(number), 'netns', place);
    this.#undo.add(['link', 'del', cable]);
    await ip('link', 'set', cable, 'master', bridge, 'up');
    await ip('-n', place, 'link', 'set', 'lo', 'up');
    await ip('-n', place, 'address', 'add', `${host}/24`, 'dev', 'eth0');
    await ip('-n', place, 'link', 'set', 'eth0', 'up');
    // Without a fixed neighbour, ARP would soon report a lost machine as unreachable; a firewall that drops packets
    // would not.
    await ip('neigh', 'replace', host, 'lladdr', mac(number), 'dev', bridge, 'nud', 'permanent');
    const set = (state: 'up' | 'down') => ip('link', 'set', cable, state).then(() => {});
    return { place, number, host, cable: { cut: () => set('down'), heal: () => set('up') } };
  }

  /** Tells a namespace a fixed neighbour, for the reason above. */
  async #neighbour(place: string, number: number): Promise<void> {
    const host = `${this.#net}.${number}`;
    await ip('-n', place, 'neigh', 'replace', host, 'lladdr', mac(number), 'dev', 'eth0', 'nud', 'permanent');
  }

  async #addPod(on: string, gate: string, number: number, resolvConf: string): Promise<PodPlace> {
    const [place, cable, host] = [`${this.#name}n${number}`, `v${number}`, `${this.#net}.${number}`];
    const folder = join(FILES, place);
    this.#folders.add(folder);
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'resolv.conf'), resolvConf);
    const remove = ['netns', 'del', place];
    await ip('netns', 'add', place);
    this.#undo.add(remove);
    await ip('-n', on, 'link', 'add', cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', place);
    await ip('-n', on, 'link', 'set', cable, 'master', 'br0', 'up');
    await ip('-n', place, 'link', 'set', 'lo', 'up');
    await ip('-n', place, 'address', 'add', `${host}/${PREFIX}`, 'dev', 'eth0');
    await ip('-n', place, 'link', 'set', 'eth0', 'up');
    await ip('-n', place, 'route', 'add', 'default', 'via', gate);
    // Where it may not mount, `ip netns exec` only warns.
    const { stdout } = await ip('netns', 'exec', place, 'cat', '/etc/resolv.conf');
    if (stdout !== resolvConf) throw new Error('a namespace does not get an /etc/resolv.conf of its own');
    const leave = async () => {
      this.#undo.delete(remove);
      await ip(...remove);
      await rm(folder, { recursive: true, force: true });
      this.#folders.delete(folder);
    };
    return { host, through: inside(place), leave };
  }

  async close(): Promise<void> {
    process.off('exit', this.#removeAtExit);
    for (const words of [...this.#undo].reverse()) await ip(...words).catch(() => {});
    for (const folder of this.#folders) await rm(folder, { recursive: true, force: true });
    await removeIfEmpty();
  }

  /** The same for a process that ends without closing. */
  readonly #removeAtExit = () => {
    for (const words of [...this.#undo].reverse()) spawnSync('ip', words, { timeout: STEP_TIMEOUT_MS });
    for (const folder of this.#folders) rmSync(folder, { recursive: true, force: true });
    spawnSync('rmdir', ['--ignore-fail-on-non-empty', FILES], { stdio: 'ignore' });
  };
}

const inside = (place: string) => ['ip', 'netns', 'exec', place];

function lacking(cause: unknown): ServingError {
  const said = cause as Error & { stderr?: string };
  const reason = (said.stderr || said.message).trim();
  return new ServingError('config_invalid', `needs network namespaces (${reason})`, { cause });
}

/** Removes what killed runs have left behind: their processes are gone, but the kernel keeps bridges and namespaces. */
async function sweep(): Promise<void> {
  const names = async (...words: string[]) => {
    const { stdout } = await ip('-j', ...words);
    return (stdout.trim() === '' ? [] : (JSON.parse(stdout) as { ifname?: string; name?: string }[])).flatMap(
      ({ ifname, name }) => ifname ?? name ?? [],
    );
  };
  const left = (name: string) => {
    const [, number] = /^lcd(\d+)[bnv]\d*$/.exec(name) ?? [];
    return number !== undefined && !isAlive(Number(number));
  };
  for (const place of (await names('netns', 'list')).filter(left)) await ip('netns', 'del', place).catch(() => {});
  for (const link of (await names('link', 'show')).filter(left)) await ip('link', 'del', link).catch(() => {});
  const folders = await readdir(FILES).catch(() => []);
  for (const name of folders.filter(left)) await rm(join(FILES, name), { recursive: true, force: true });
  await removeIfEmpty();
}

/** Removes the folder of files, which some machines do not have otherwise. */
const removeIfEmpty = () => rmdir(FILES).catch(() => {});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

const mac = (number: number) => `02:00:00:00:00:${number.toString(16).padStart(2, '0')}`;
