/**
 * Who may read /metrics, where that is said: whoever has a token made for it, or asks from a listed network. The
 * figures are of all tenants, with their names, so that a tenant's key does not do.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { BlockList, isIP } from 'node:net';
import { ServingError } from '../../lib/process/errors.ts';
import { readSettingFile } from '../../lib/process/os-errors.ts';
import type { HttpConfig } from './settings.ts';

/** A shorter token could be guessed. */
const SHORTEST_TOKEN = 16;

export interface Scrapers {
  /**
   * @param token of the header `authorization: Bearer <token>`; undefined where there is none.
   * @param address of the client, without a port.
   * @throws ServingError invalid_api_key
   */
  assertMayScrape(token: string | undefined, address: string): void;
}

/**
 * @returns undefined where neither a token nor a network is given: then a key with access `admin` is needed, as before
 *   there were these settings.
 * @throws ServingError config_invalid
 */
export async function loadScrapers(config: Pick<HttpConfig, 'metricsTokenFile' | 'metricsNetworks'>) {
  const { metricsTokenFile: file, metricsNetworks: networks } = config;
  if (file === '' && networks.length === 0) return undefined;
  const digest = file === '' ? undefined : digestOf(await readToken(file));
  const listed = new BlockList();
  for (const network of networks) addNetwork(listed, network);
  const scrapers: Scrapers = {
    assertMayScrape(token, address) {
      if (token !== undefined && digest !== undefined && timingSafeEqual(digestOf(token), digest)) return;
      const plain = address.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '');
      if (isIP(plain) !== 0 && listed.check(plain, isIP(plain) === 6 ? 'ipv6' : 'ipv4')) return;
      throw new ServingError(
        'invalid_api_key',
        'metrics are read with the token of --metrics-token-file, or from one of --metrics-networks; no other key does',
      );
    },
  };
  return scrapers;
}

const digestOf = (token: string) => createHash('sha256').update(token, 'latin1').digest();

async function readToken(file: string): Promise<string> {
  const token = (await readSettingFile('--metrics-token-file', file)).toString('latin1').trim();
  if (token.length >= SHORTEST_TOKEN && /^\S+$/.test(token)) return token;
  throw new ServingError(
    'config_invalid',
    `--metrics-token-file ${file}: must hold one token of at least ${SHORTEST_TOKEN} characters (openssl rand -hex 32)`,
  );
}

function addNetwork(list: BlockList, network: string): void {
  const [address = '', prefix] = network.split('/');
  const bits = isIP(address) === 6 ? 128 : 32;
  list.addSubnet(address, prefix === undefined ? bits : Number(prefix), isIP(address) === 6 ? 'ipv6' : 'ipv4');
}
