/**
 * The signs by which a server tells that a connection leads to the wrong one: a replica in the place of the master that
 * was there, a server that is still loading, a node of a cluster, a sentinel. Such a connection stays open and goes on
 * answering, so nothing but these signs tells that a new one is needed. Pure.
 */
import type { RedisAddress } from './url.ts';

/**
 * Answers to a command that the right server would carry out. The server has done nothing, so the command may be sent
 * again. Scripts wrap the text: "READONLY … script: f_…" on Redis 7, "ERR Error running script …: -READONLY …" before.
 *
 *   READONLY     a replica is asked to write: it was the master before a failover
 *   MASTERDOWN   a replica that has lost its master, and is not to answer from old data
 *   LOADING      a server that reads its data from disk, or a new replica that receives them
 *   NOREPLICAS   a master without the replicas that `min-replicas-to-write` asks for: it may have been cut off
 */
const OTHER_SERVER = /(?:^|: -?)(?:READONLY|MASTERDOWN|LOADING|NOREPLICAS) /;

/** Answers that only a node of a cluster gives. The client of a cluster follows them by itself. */
const CLUSTER_NODE = /(?:^|: -?)(?:MOVED|ASK|CLUSTERDOWN|TRYAGAIN|CROSSSLOT) /;

/** The error of a failed EXEC holds those of its commands; the error of a cluster's client holds that of a node. */
interface Wrapping extends Error {
  readonly previousErrors?: readonly Error[];
  readonly lastNodeError?: Error;
}

const textsOf = (error: unknown): string[] => {
  if (!(error instanceof Error)) return [];
  const { message, previousErrors = [], lastNodeError } = error as Wrapping;
  return [message, ...previousErrors.flatMap(textsOf), ...textsOf(lastNodeError)];
};

/** Whether the server did nothing because another one must be asked. */
export const isFromOtherServer = (error: unknown) => textsOf(error).some((text) => OTHER_SERVER.test(text));

/** Whether the answer comes from a node of a cluster: where none was expected, no retry helps. */
export const isFromClusterNode = (error: unknown) => textsOf(error).some((text) => CLUSTER_NODE.test(text));

/** The remedy for an answer, for messages; '' where the answer says enough. */
export function remedyFor(error: unknown, address: RedisAddress): string {
  if (address.kind !== 'cluster' && isFromClusterNode(error)) return `: ${useClusterUrl(address)}`;
  if (textsOf(error).some((text) => /(?:^|: -?)READONLY /.test(text))) {
    return ': the server is a replica, use an address that leads to the master';
  }
  return '';
}

/** A server's description of itself, as INFO gives it. */
export interface ServerInfo {
  readonly role: 'master' | 'replica' | 'unknown';
  /** A replica that receives what its master writes. True for a master. */
  readonly upToDate: boolean;
  readonly loading: boolean;
  readonly clusterNode: boolean;
  readonly sentinel: boolean;
}

export function parseInfo(text: string): ServerInfo {
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(text)?.[1];
  const role = field('role');
  return {
    role: role === 'master' ? 'master' : role === 'slave' ? 'replica' : 'unknown',
    upToDate: field('master_link_status') !== 'down',
    loading: field('loading') === '1',
    clusterNode: field('cluster_enabled') === '1',
    sentinel: field('redis_mode') === 'sentinel',
  };
}

/** Number of masters that share the slots, from CLUSTER INFO. One that has them all serves `redis://` as well. */
export const mastersOf = (clusterInfo: string) => Number(/^cluster_size:(\d+)/m.exec(clusterInfo)?.[1] ?? 0);

export const useClusterUrl = ({ shown }: RedisAddress) =>
  `the server is a node of a cluster, use ${shown.replace(/^(rediss?)(?:\+sentinel)?:\/\/([^/]*).*$/, '$1+cluster://$2')}`;

export const useSentinelUrl = ({ shown }: RedisAddress) =>
  `the server is a sentinel, use ${shown.replace(/^(rediss?):\/\/([^/]*).*$/, '$1+sentinel://$2/MASTER')}`;
