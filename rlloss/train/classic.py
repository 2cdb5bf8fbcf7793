"""Gymnasium's classic tasks in Python's own numbers: to the last bit what they compute, in a fraction of the time.

Gymnasium's copies stay beside them: they draw every first state, know the streams of random numbers, and are brought up
to date whenever somebody looks at them. Each formula is Gymnasium's, operation by operation, since floats in Python and
NumPy's scalars round alike; functions are those that Gymnasium calls, NumPy's cosine or the C library's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv, PendulumEnv
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from numpy import cos, sin
from numpy.typing import NDArray

from rlloss.train.interior import Interior
from rlloss.train.vector import Environments
from rlloss.train.wrappers import Env

Numbers = Sequence[float]
TRIED = 200  # steps of a task that are compared with Gymnasium's before its copy is used


class Copy(ABC):
    """One environment: Gymnasium's own, and its state in Python's numbers."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.core: Any = env.unwrapped
        self.limit: int = env._max_episode_steps
        self.read()

    def read(self) -> None:
        """Go on from where Gymnasium's copy is."""
        self.state = [float(x) for x in self.core.state]
        self.elapsed: int = self.env._elapsed_steps

    def put_back(self) -> None:
        """Bring Gymnasium's copy to where this one is."""
        if self.elapsed != self.env._elapsed_steps:
            self.env._elapsed_steps = self.elapsed
            self.give(self.core)

    def reset(self) -> NDArray[Any]:
        first: NDArray[Any] = self.env.reset()[0]
        self.read()
        return first

    @abstractmethod
    def step(self, action: Any) -> tuple[Numbers, float, bool]:
        """One step: observation, reward, and whether the episode has terminated."""

    def give(self, core: Any) -> None:
        """The state, as Gymnasium keeps it after a step."""
        core.state = np.array(self.state)


class CartPole(Copy):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        core = self.core
        self.constants = (  # at once, since each look-up takes as long as a sum
            core.gravity, core.masspole, core.total_mass, core.length, core.polemass_length, core.force_mag, core.tau,
            core.x_threshold, core.theta_threshold_radians,
        )  # fmt: skip

    def step(self, action: Any) -> tuple[Numbers, float, bool]:
        gravity, masspole, total_mass, length, polemass_length, push, tau, x_limit, theta_limit = self.constants
        x, x_dot, theta, theta_dot = self.state
        costheta, sintheta = float(cos(theta)), float(sin(theta))
        force = push if action == 1 else -push
        temp = (force + polemass_length * (theta_dot * theta_dot) * sintheta) / total_mass
        thetaacc = (gravity * sintheta - costheta * temp) / (
            length * (4.0 / 3.0 - masspole * (costheta * costheta) / total_mass)
        )
        xacc = temp - polemass_length * thetaacc * costheta / total_mass
        x, x_dot = x + tau * x_dot, x_dot + tau * xacc
        theta, theta_dot = theta + tau * theta_dot, theta_dot + tau * thetaacc
        self.state = [x, x_dot, theta, theta_dot]
        self.fell = not (-x_limit <= x <= x_limit and -theta_limit <= theta <= theta_limit)
        return self.state, 1.0, self.fell

    def give(self, core: Any) -> None:
        super().give(core)
        core.steps_beyond_terminated = 0 if self.fell else None


class MountainCar(Copy):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        core = self.core
        self.force, self.gravity, self.fastest = core.force, core.gravity, core.max_speed
        self.left, self.right = core.min_position, core.max_position
        self.goal, self.goal_velocity = core.goal_position, core.goal_velocity

    def step(self, action: Any) -> tuple[Numbers, float, bool]:
        position, velocity = self.state
        velocity += (action - 1) * self.force + math.cos(3 * position) * (-self.gravity)
        velocity = _clipped(velocity, -self.fastest, self.fastest)
        position = _clipped(position + velocity, self.left, self.right)
        self.stopped = position == self.left and velocity < 0
        velocity = 0.0 if self.stopped else velocity
        self.state = [position, velocity]
        return self.state, -1.0, position >= self.goal and velocity >= self.goal_velocity

    def give(self, core: Any) -> None:
        position, velocity = map(np.float64, self.state)
        core.state = (position, 0 if self.stopped else velocity)


class Acrobot(Copy):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        core = self.core
        self.torques, self.limits, self.dt = core.AVAIL_TORQUE, (core.MAX_VEL_1, core.MAX_VEL_2), core.dt
        masses = core.LINK_MASS_1, core.LINK_MASS_2
        self.links = (
            *masses,
            core.LINK_LENGTH_1,
            core.LINK_COM_POS_1,
            core.LINK_COM_POS_2,
            core.LINK_MOI,
            core.LINK_MOI,
            9.8,
        )

    def step(self, action: Any) -> tuple[Numbers, float, bool]:
        """By the classical Runge-Kutta method."""
        s, torque, dt = self.state, self.torques[action], self.dt
        half = dt / 2.0
        k1 = self._derivatives(s, torque)
        k2 = self._derivatives([x + half * k for x, k in zip(s, k1, strict=True)], torque)
        k3 = self._derivatives([x + half * k for x, k in zip(s, k2, strict=True)], torque)
        k4 = self._derivatives([x + dt * k for x, k in zip(s, k3, strict=True)], torque)
        theta1, theta2, speed1, speed2 = (
            x + dt / 6.0 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in zip(s, k1, k2, k3, k4, strict=True)
        )
        theta1, theta2 = _wrapped(theta1), _wrapped(theta2)
        speed1, speed2 = (
            _clipped(speed, -limit, limit) for speed, limit in zip((speed1, speed2), self.limits, strict=True)
        )
        self.state = [theta1, theta2, speed1, speed2]
        cos1 = float(cos(theta1))
        ended = -cos1 - float(cos(theta2 + theta1)) > 1.0
        seen = (cos1, float(sin(theta1)), float(cos(theta2)), float(sin(theta2)), speed1, speed2)
        return seen, 0.0 if ended else -1.0, ended

    def _derivatives(self, s: Numbers, torque: float) -> Numbers:
        """Of both angles and both speeds."""
        m1, m2, l1, lc1, lc2, i1, i2, g = self.links
        theta1, theta2, dtheta1, dtheta2 = s
        cos2, sin2 = float(cos(theta2)), float(sin(theta2))
        d1 = m1 * lc1**2 + m2 * (l1**2 + lc2**2 + 2 * l1 * lc2 * cos2) + i1 + i2
        d2 = m2 * (lc2**2 + l1 * lc2 * cos2) + i2
        phi2 = m2 * lc2 * g * float(cos(theta1 + theta2 - math.pi / 2.0))
        phi1 = (
            -m2 * l1 * lc2 * dtheta2**2 * sin2
            - 2 * m2 * l1 * lc2 * dtheta2 * dtheta1 * sin2
            + (m1 * lc1 + m2 * l1) * g * float(cos(theta1 - math.pi / 2))
            + phi2
        )
        turning = torque + d2 / d1 * phi1 - m2 * l1 * lc2 * dtheta1**2 * sin2 - phi2
        ddtheta2 = turning / (m2 * lc2**2 + i2 - d2**2 / d1)
        return dtheta1, dtheta2, -(d2 * ddtheta2 + phi1) / d1, ddtheta2


class Pendulum(Copy):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        core = self.core
        self.g, self.m, self.l, self.dt = core.g, core.m, core.l, core.dt
        self.fastest = core.max_speed

    def step(self, action: Any) -> tuple[Numbers, float, bool]:
        """``action``: an array of one number, whose dtype decides how its products round."""
        theta, speed = self.state
        u = self.torque = action[0]  # which ``executable`` has clipped
        angle = ((theta + math.pi) % (2 * math.pi)) - math.pi
        costs = angle**2 + 0.1 * speed**2 + float(0.001 * (u**2))
        speed = (
            speed + (3 * self.g / (2 * self.l) * float(sin(theta)) + float(3.0 / (self.m * self.l**2) * u)) * self.dt
        )
        speed = _clipped(speed, -self.fastest, self.fastest)
        theta = theta + speed * self.dt
        self.state = [theta, speed]
        return (float(cos(theta)), float(sin(theta)), speed), -costs, False

    def give(self, core: Any) -> None:
        super().give(core)
        core.last_u = self.torque


def _clipped(x: Any, low: float, high: float) -> Any:
    """``x`` within bounds; a nan stays one."""
    return low if x < low else high if x > high else x


def _wrapped(angle: float) -> float:
    """An angle within [-pi, pi]."""
    while angle > math.pi:
        angle = angle - 2 * math.pi
    while angle < -math.pi:
        angle = angle + 2 * math.pi
    return angle


COPIES: dict[type, type[Copy]] = {
    CartPoleEnv: CartPole,
    MountainCarEnv: MountainCar,
    AcrobotEnv: Acrobot,
    PendulumEnv: Pendulum,
}


class ClassicEnvironments(Environments):
    """Environments of one of the ``COPIES``, each stepped in Python's numbers."""

    def __init__(
        self, make: Callable[[], Env], seeds: Sequence[int], room: Callable[[Env], None] = lambda env: None
    ) -> None:
        super().__init__(make, seeds, room)
        self._read()

    def _read(self) -> None:
        kind = COPIES[type(self.envs[0].unwrapped)]
        self._copies = [kind(env) for env in self.envs]
        self._seen = np.empty(self.obs.shape, np.float32)  # observations, in Gymnasium's dtype

    def _step(
        self,
        actions: NDArray[Any],
        obs: NDArray[Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> dict[int, NDArray[Any]]:
        cut: dict[int, NDArray[Any]] = {}
        journal = self.journal
        rows: list[Any] = []
        gains = []
        terminated.fill(False)
        truncated.fill(False)
        for i, (copy, action) in enumerate(zip(self._copies, self.executable(actions), strict=True)):
            row: Any
            row, gain, ended = copy.step(action)
            copy.elapsed += 1
            late = copy.elapsed >= copy.limit
            if ended or late:
                terminated[i], truncated[i] = ended, late
                if not ended:
                    cut[i] = np.array(row, np.float32)
                if journal.is_due(i):
                    copy.put_back()
                    journal.begin(i, copy.env)
                row = copy.reset()
            rows.append(row)
            gains.append(gain)
        self._seen[:] = rows
        obs[:], rewards[:] = self._seen, gains
        return cut

    def interiors(self) -> list[Interior]:
        for copy in self._copies:
            copy.put_back()
        return super().interiors()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._read()


def has_copy(env_id: str, make: Callable[[], Env]) -> bool:
    """Whether an environment, as its id alone makes it, has a copy that computes the same bits here.

    What this release of Gymnasium, this CPU and these libraries compute is tried, and not taken for granted.
    """
    spec = gymnasium.registry.get(env_id)
    entries = {f"{kind.__module__}:{kind.__name__}" for kind in COPIES}
    if spec is None or spec.entry_point not in entries or spec.kwargs or spec.additional_wrappers:
        return False
    theirs = Environments(make, [0])
    try:
        env: Any = theirs.envs[0]
        if [type(env), type(env.env), type(env.env.env)] != [TimeLimit, OrderEnforcing, type(env.unwrapped)]:
            return False
        ours = ClassicEnvironments(make, [0])
        try:
            return _played(theirs) == _played(ours)
        finally:
            ours.close()
    finally:
        theirs.close()


def _played(envs: Environments) -> tuple[bytes, str]:
    """Everything that ``TRIED`` steps return, and the interior after them."""
    rng, space = np.random.default_rng(0), envs.action_space
    choices = int(space.n) if isinstance(space, spaces.Discrete) else 0
    obs, rewards, ends = np.empty((TRIED, *envs.obs.shape)), np.empty((TRIED, 1)), np.empty((2, TRIED, 1), np.bool_)
    for t in range(TRIED):
        action = rng.integers(choices, size=1) if choices else rng.normal(size=(1, 1)).astype(np.float32)
        envs.step(action, obs[t], rewards[t], ends[0, t], ends[1, t])
    return b"".join(array.tobytes() for array in (obs, rewards, ends)), repr(envs.interiors())
