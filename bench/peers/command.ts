/** The command `llavacode bench peers`. */
import { InvalidArgumentError } from 'commander';
import { count } from '../../services/lib/process/count-argument.ts';
import { parseSlo } from '../measure/latency.ts';
import {
  counts,
  list,
  numbers,
  option,
  type ParsedOptions,
  positive,
  required,
  SYSTEM_OPTIONS,
  whole,
  words,
} from '../options.ts';

/** A server that runs already. */
export interface Peer {
  /** How the report calls it. */
  readonly name: string;
  readonly url: string;
}

/** Reads peers like `llama.cpp=http://127.0.0.1:8081,vLLM=http://127.0.0.1:8082`. */
export function peers(text: string): Peer[] {
  const read = list(text).map((item) => {
    const at = item.indexOf('=');
    const [name, url] = [item.slice(0, at), item.slice(at + 1).replace(/\/+$/, '')];
    if (at < 1 || !/^https?:\/\//.test(url) || !URL.canParse(url)) {
      throw new InvalidArgumentError(`${item} must be like NAME=http://HOST:PORT.`);
    }
    return { name, url };
  });
  const twice = read.find(({ name }, i) => read.findIndex((other) => other.name === name) !== i);
  if (twice !== undefined) throw new InvalidArgumentError(`${twice.name} names two servers.`);
  return read;
}

const MODES = ['colocated', 'disaggregated'] as const;
const SLO = { ttft: 4500, tpot: 120 };

export const PEERS_COMMAND = {
  name: 'peers',
  description: 'other servers of the OpenAI API beside ours, in turns: first tokens, streams, a keystroke, a load',
  options: {
    peers: required('<list>', 'servers that run already, like llama.cpp=http://127.0.0.1:8081', peers),
    modes: option('<list>', `our own deployments: ${MODES.join(', ')}`, words(MODES), [...MODES]),
    rounds: option('<n>', 'times that each figure is measured on each server, after one that does not count', count, 5),
    prompts: option('<list>', 'tokens of the prompts whose first token is timed', counts, [500, 2000]),
    streams: option('<list>', 'numbers of answers that are streamed at once', counts, [1, 4, 8]),
    streamTokens: option('<n>', 'tokens of each of these answers', count, 64),
    keystrokeTokens: option('<n>', 'tokens of the prompt that comes again with one more; 0 for none', whole, 1000),
    rate: option('<list>', 'requests per second of an open load', numbers, [], 'no load'),
    seconds: option('<n>', 'duration of the load of one rate, in s', positive, 60),
    promptTokens: option('<n>', "tokens of a load's prompts", count, 500),
    outputTokens: option('<n>', "tokens of a load's answers", count, 24),
    slo: option('<bounds>', 'objective of a request of the load', parseSlo, SLO, 'ttft:4500,tpot:120'),
    ...SYSTEM_OPTIONS,
  },
};
export type PeersOptions = ParsedOptions<typeof PEERS_COMMAND>;
