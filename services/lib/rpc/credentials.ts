/**
 * How services prove to each other that they belong to one system: by mutual TLS under a private authority, or by a
 * secret that all of them know (membership.ts). The addresses of workers change, so every certificate is issued for one
 * name, {@link SERVICE_NAME}, wherever its service runs.
 */
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials, ServerCredentials } from '@grpc/grpc-js';
import { describeValid, noteCertificates, RenewedTls } from '../process/certificate.ts';
import { type ConfigOf, flagName } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import { assertGuarded, type Exposure } from '../process/exposure.ts';
import { readSettingFile, reasonOf } from '../process/os-errors.ts';
import type { Reloadable } from '../process/reload.ts';
import { loadSystemSecret, type SystemSecret } from '../process/system-secret.ts';
import { MemberCredentials } from './membership.ts';
import { type Pems, RenewedChannel, RenewedServer } from './renewed-credentials.ts';
import type { RPC_SETTINGS } from './settings.ts';

const RPC_FILES = ['rpcCert', 'rpcKey', 'rpcCa'] as const;
type RpcFiles = ConfigOf<typeof RPC_SETTINGS>;
type Certificates = Pick<RpcSecurity, 'channel' | 'channelOptions' | 'server' | 'tls' | 'renew'>;

/** The DNS name that every service's certificate carries. */
export const SERVICE_NAME = 'llavacode';

export interface RpcSecurity {
  readonly channel: ChannelCredentials;
  readonly channelOptions: ChannelOptions;
  readonly server: ServerCredentials;
  /** This service's certificate and its key; undefined where there are no certificates. */
  readonly tls: RenewedTls | undefined;
  /** By what both ends of a connection prove that they belong to the system. Certificates also encrypt it. */
  readonly proof: 'certificates' | 'secret' | 'none';
  /** Signs KV handles and registry entries, whatever the proof of connections is. */
  readonly secret: SystemSecret | undefined;
  /**
   * Reads the certificates again and uses them for connections that are made from then on, by callers and by servers;
   * those that are open go on. undefined where there are none.
   * @returns what the log says of them.
   * @throws ServingError config_invalid; those before stay in use.
   */
  readonly renew?: () => Promise<object>;
}

/** No encryption, and no proof of identity. */
export const PLAINTEXT: RpcSecurity = {
  channel: credentials.createInsecure(),
  channelOptions: {},
  server: ServerCredentials.createInsecure(),
  tls: undefined,
  proof: 'none',
  secret: undefined,
};

/**
 * Where there are certificates, they prove connections, else the secret does. The files of certificates are read again
 * by `renew`; a new secret takes effect at the next start.
 * @throws ServingError config_invalid, naming the file at fault.
 */
export async function loadRpcSecurity(files: RpcFiles): Promise<RpcSecurity> {
  const [secret, certificates] = await Promise.all([loadSystemSecret(files.rpcSecretFile), loadCertificates(files)]);
  if (certificates) return { ...certificates, proof: 'certificates', secret };
  if (secret === undefined) return PLAINTEXT;
  return { ...PLAINTEXT, channel: new MemberCredentials(secret), proof: 'secret', secret };
}

/** Needs all three files or none. */
async function loadCertificates(files: RpcFiles): Promise<Certificates | undefined> {
  const missing = RPC_FILES.filter((setting) => files[setting] === '');
  if (missing.length === RPC_FILES.length) return undefined;
  if (missing.length > 0) {
    throw new ServingError('config_invalid', `mutual TLS also needs ${missing.map(flagName).join(' and ')}`);
  }
  const first = await readPems(files);
  const channel = new RenewedChannel(channelOf(first));
  const server = new RenewedServer(first);
  const tls = new RenewedTls(first);
  noteCertificates({ rpcCert: first.cert, rpcCa: first.ca });
  const renew = async () => {
    const pems = await readPems(files);
    const described = describeValid(`${flagName('rpcCert')} ${files.rpcCert}`, pems.cert, SERVICE_NAME);
    channel.renew(channelOf(pems));
    server.renew(pems);
    tls.renew(pems);
    noteCertificates({ rpcCert: pems.cert, rpcCa: pems.ca });
    return described;
  };
  return { channel, channelOptions: { 'grpc.ssl_target_name_override': SERVICE_NAME }, server, tls, renew };
}

const channelOf = ({ ca, key, cert }: Pems) => credentials.createSsl(ca, key, cert);

/** @throws ServingError config_invalid for files that cannot be read or do not belong together. */
async function readPems(files: RpcFiles): Promise<Pems> {
  const [cert, key, ca] = (await Promise.all(
    RPC_FILES.map((setting) => readSettingFile(flagName(setting), files[setting])),
  )) as [Buffer, Buffer, Buffer];
  try {
    createSecureContext({ cert, key, ca });
  } catch (cause) {
    const names = RPC_FILES.map((setting) => files[setting]).join(', ');
    throw new ServingError('config_invalid', `${names}: ${reasonOf(cause)}`, { cause });
  }
  return { cert, key, ca };
}

/**
 * The security of a server: a worker or an indexer.
 * @throws ServingError config_invalid for bad files, or for an address that other machines reach where callers need no
 *   proof.
 */
export async function loadServingSecurity(config: RpcFiles & Exposure): Promise<RpcSecurity> {
  const security = await loadRpcSecurity(config);
  assertGuarded(config, security.proof !== 'none', '--rpc-cert, --rpc-key and --rpc-ca, or --rpc-secret-file');
  return security;
}

/** The files of the certificates, to be followed while the process serves (reload.ts); none where there are none. */
export const rpcCertificates = (files: RpcFiles, { renew }: RpcSecurity): Reloadable => ({
  name: 'rpc_tls',
  files: renew === undefined ? [] : RPC_FILES.map((setting) => files[setting]),
  reload: async () => renew?.() ?? {},
});
