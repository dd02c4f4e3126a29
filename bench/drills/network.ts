/**
 * Network namespaces on a bridge, which work like machines whose cables can be pulled. Unlike a proxy, a pulled cable
 * loses every packet without a sign: there is no FIN and no RST, and the TCP of the peers has to find out.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { ServingError } from '../../services/lib/process/errors.ts';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 10_000;
const ip = (...words: string[]) => run('ip', words, { timeout: STEP_TIMEOUT_MS });

/** A namespace in which a process can run. */
export interface Port {
  /** Address of the namespace; its 127.0.0.1 is not ours. */
  readonly host: string;
  /** Words that run a command in the namespace when they precede it. */
  readonly through: readonly string[];
  cut(): Promise<void>;
  heal(): Promise<void>;
}

export class NamespaceNetwork {
  /** Prefix of all names; the name of an interface has at most 15 letters. */
  readonly #name: string;
  /** First three bytes of all addresses, from the range reserved for benchmarks of networks. */
  readonly #net: string;
  readonly #undo: (readonly string[])[] = [];
  #ports = 0;

  private constructor(number: number) {
    this.#name = `lcd${number}`;
    this.#net = `198.18.${number % 256}`;
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
      network.#undo.push(['link', 'del', bridge]);
      // The address is set because it would otherwise change with the ports.
      await ip('link', 'set', bridge, 'address', mac(1), 'up');
      await ip('address', 'add', `${network.#net}.1/24`, 'dev', bridge);
      // Namespaces may be refused although bridges are not.
      await network.join();
      return network;
    } catch (cause) {
      await network.close();
      const said = cause as Error & { stderr?: string };
      const reason = (said.stderr || said.message).trim();
      throw new ServingError('config_invalid', `needs network namespaces (${reason})`, { cause });
    }
  }

  /** Adds a namespace to this network. */
  async join(): Promise<Port> {
    const number = ++this.#ports + 1;
    const [place, cable, bridge] = [`${this.#name}n${number}`, `${this.#name}v${number}`, `${this.#name}b`];
    const host = `${this.#net}.${number}`;
    await ip('netns', 'add', place);
    this.#undo.push(['netns', 'del', place]);
    await ip('link', 'add', cable, 'type', 'veth', 'peer', 'name', 'eth0', 'address', mac(number), 'netns', place);
    this.#undo.push(['link', 'del', cable]);
    await ip('link', 'set', cable, 'master', bridge, 'up');
    await ip('-n', place, 'link', 'set', 'lo', 'up');
    await ip('-n', place, 'address', 'add', `${host}/24`, 'dev', 'eth0');
    await ip('-n', place, 'link', 'set', 'eth0', 'up');
    // Without a fixed neighbour, ARP would soon report a lost machine as unreachable; a firewall that drops packets
    // would not.
    await ip('neigh', 'replace', host, 'lladdr', mac(number), 'dev', bridge, 'nud', 'permanent');
    const set = (state: 'up' | 'down') => ip('link', 'set', cable, state).then(() => {});
    return { host, through: ['ip', 'netns', 'exec', place], cut: () => set('down'), heal: () => set('up') };
  }

  async close(): Promise<void> {
    for (const words of this.#undo.splice(0).reverse()) await ip(...words).catch(() => {});
  }
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
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

const mac = (number: number) => `02:00:00:00:00:${number.toString(16).padStart(2, '0')}`;
