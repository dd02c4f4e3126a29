/**
 * Machines of their own on this one: network namespaces on a bridge, whose cables can be pulled. Unlike a proxy, a pulled
 * cable loses every packet and tells nobody: no FIN, no RST, and the peers' own TCP has to find out.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { ServingError } from '../../services/lib/process/errors.ts';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 10_000;
const ip = (...words: string[]) => run('ip', words, { timeout: STEP_TIMEOUT_MS });

/** Where a process can be put. */
export interface Port {
  /** Address of that machine; its 127.0.0.1 is another one than ours. */
  readonly host: string;
  /** Words that run a command there. */
  readonly through: readonly string[];
  cut(): Promise<void>;
  heal(): Promise<void>;
}

export class Network {
  /** Beginning of all names; an interface's has at most 15 letters. */
  readonly #name: string;
  /** First three bytes of all addresses: of those set aside for benchmarks of networks. */
  readonly #net: string;
  readonly #undo: (readonly string[])[] = [];
  #ports = 0;

  private constructor(number: number) {
    this.#name = `lcd${number}`;
    this.#net = `198.18.${number % 256}`;
  }

  /**
   * @param number of the process whose it is: what is left of one that is gone is removed by the next.
   * @throws ServingError config_invalid where this machine or this user cannot have one.
   */
  static async open(number = process.pid): Promise<Network> {
    const network = new Network(number);
    const bridge = `${network.#name}b`;
    try {
      await sweep();
      await ip('link', 'add', bridge, 'type', 'bridge');
      network.#undo.push(['link', 'del', bridge]);
      // Given, since it would change with the ports.
      await ip('link', 'set', bridge, 'address', mac(1), 'up');
      await ip('address', 'add', `${network.#net}.1/24`, 'dev', bridge);
      // Namespaces may be refused where bridges are not.
      await network.join();
      return network;
    } catch (cause) {
      await network.close();
      const said = cause as Error & { stderr?: string };
      const reason = (said.stderr || said.message).trim();
      throw new ServingError('config_invalid', `needs network namespaces (${reason})`, { cause });
    }
  }

  /** A new machine on this network. */
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
    // Else a lost machine is soon "unreachable" by ARP, which a firewall that drops packets does not say.
    await ip('neigh', 'replace', host, 'lladdr', mac(number), 'dev', bridge, 'nud', 'permanent');
    const set = (state: 'up' | 'down') => ip('link', 'set', cable, state).then(() => {});
    return { host, through: ['ip', 'netns', 'exec', place], cut: () => set('down'), heal: () => set('up') };
  }

  async close(): Promise<void> {
    for (const words of this.#undo.splice(0).reverse()) await ip(...words).catch(() => {});
  }
}

/** Removes what runs that were killed have left: their process is gone, and the kernel keeps all of it. */
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
