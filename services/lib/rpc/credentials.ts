/**
 * How services prove to each other that they belong to one system: by mutual TLS under a private authority, or by a
 * secret that all of them know (membership.ts). The addresses of workers change, so every certificate is issued for one
 * name, {@link SERVICE_NAME}, wherever its service runs.
 */
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials, ServerCredentials } from '@grpc/grpc-js';
import { noteCertificates } from '../process/certificates.ts';
import { type ConfigOf, flagName } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import { assertGuarded, type Exposure } from '../process/exposure.ts';
import { readSettingFile, reasonOf } from '../process/os-errors.ts';
import { loadSystemSecret, type SystemSecret } from '../process/system-secret.ts';
import { MemberCredentials } from './membership.ts';
import type { RPC_SETTINGS } from './settings.ts';

const RPC_FILES = ['rpcCert', 'rpcKey', 'rpcCa'] as const;
type RpcFiles = ConfigOf<typeof RPC_SETTINGS>;
type Certificates = Pick<RpcSecurity, 'channel' | 'channelOptions' | 'server' | 'tls'>;

/** The DNS name that every service's certificate carries. */
export const SERVICE_NAME = 'llavacode';

export interface RpcSecurity {
  readonly channel: ChannelCredentials;
  readonly channelOptions: ChannelOptions;
  readonly server: ServerCredentials;
  /** This service's certificate and its key, in PEM; undefined where there are no certificates. */
  readonly tls: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  /** By what both ends of a connection prove that they belong to the system. Certificates also encrypt it. */
  readonly proof: 'certificates' | 'secret' | 'none';
  /** Signs KV handles and registry entries, whatever the proof of connections is. */
  readonly secret: SystemSecret | undefined;
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
 * Where there are certificates, they prove connections, else the secret does. The files are read once, so new ones take
 * effect at the next start.
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
  const [cert, key, ca] = await Promise.all(
    RPC_FILES.map((setting) => readSettingFile(flagName(setting), files[setting])),
  );
  try {
    createSecureContext({ cert, key, ca });
  } catch (cause) {
    const names = RPC_FILES.map((setting) => files[setting]).join(', ');
    throw new ServingError('config_invalid', `${names}: ${reasonOf(cause)}`, { cause });
  }
  noteCertificates({ rpcCert: cert!, rpcCa: ca! });
  return {
    tls: { cert: cert!, key: key! },
    channel: credentials.createSsl(ca!, key!, cert!),
    channelOptions: { 'grpc.ssl_target_name_override': SERVICE_NAME },
    server: ServerCredentials.createSsl(ca!, [{ cert_chain: cert!, private_key: key! }], true),
  };
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
