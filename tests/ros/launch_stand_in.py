# SPDX-License-Identifier: Apache-2.0
"""What detector.launch.py uses of launch, launch_ros and ament_index, where they are not installed.

Signatures are those of Humble (launch 1.0, launch_ros 0.19): another name or argument is a TypeError or an ImportError.
Nothing is executed: events are handed to :meth:`LaunchContext.emit`, which answers what would start.
"""

from __future__ import annotations

import os
import types
from pathlib import Path


class LaunchContext:
    """Configurations and event handlers of a launch."""

    def __init__(self):
        self.launch_configurations = {}
        self.handlers = []

    def emit(self, event):
        """The entities that start upon the event."""
        matching = [handler for handler in self.handlers if handler.matches(event)]
        self.handlers = [h for h in self.handlers if not (h in matching and h.handle_once)]
        return [entity for handler in matching for entity in handler.entities]


class LaunchDescription:
    def __init__(self, initial_entities=None, *, deprecated_reason=None):
        self.entities = list(initial_entities or ())


class Action:
    def visit(self, context):
        return None


class DeclareLaunchArgument(Action):
    def __init__(self, name, *, default_value=None, description=None, choices=None):
        if choices is not None and default_value not in choices:
            raise RuntimeError(f"default {default_value!r} of {name!r} is not in {choices}")
        self.name, self.default_value, self.description, self.choices = (
            name,
            default_value,
            description,
            choices,
        )

    def visit(self, context):
        value = context.launch_configurations.setdefault(self.name, self.default_value)
        if self.choices is not None and value not in self.choices:
            raise RuntimeError(
                f'Argument "{self.name}" provided value "{value}" is not valid. Valid options are: {self.choices}'
            )


class OpaqueFunction(Action):
    def __init__(self, *, function, args=None, kwargs=None):
        self.function = function

    def visit(self, context):
        return self.function(context)


class SetEnvironmentVariable(Action):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def visit(self, context):
        os.environ[self.name] = self.value


class RegisterEventHandler(Action):
    def __init__(self, event_handler):
        self.event_handler = event_handler

    def visit(self, context):
        context.handlers.append(self.event_handler)


class ExecuteProcess(Action):
    def __init__(
        self,
        *,
        cmd,
        prefix=None,
        name=None,
        cwd=None,
        env=None,
        additional_env=None,
        shell=False,
        sigterm_timeout=5,
        sigkill_timeout=5,
        emulate_tty=False,
        output="log",
        log_cmd=False,
        on_exit=None,
        respawn=False,
        respawn_delay=None,
    ):
        texts = [*(additional_env or {}), *(additional_env or {}).values(), output]
        texts += [word for word in cmd if not isinstance(word, ExecutableInPackage)]
        assert all(isinstance(text, str) for text in texts), texts
        assert output in ("log", "screen", "both") and isinstance(respawn, bool)


class Node(ExecuteProcess):
    def __init__(
        self,
        *,
        executable,
        package=None,
        name=None,
        namespace=None,
        exec_name=None,
        parameters=None,
        remappings=None,
        ros_arguments=None,
        arguments=None,
        **keywords,
    ):
        super().__init__(cmd=[executable, *(arguments or ()), *(ros_arguments or ())], **keywords)
        for entry in parameters or ():
            values = entry.values() if isinstance(entry, dict) else ()
            assert isinstance(entry, str) or all(isinstance(v, (bool, ParameterValue)) for v in values)
        assert all(isinstance(text, str) for rule in remappings or () for text in rule)


class LifecycleNode(Node):
    def __init__(self, *, name, namespace, **keywords):
        super().__init__(name=name, namespace=namespace, **keywords)


class StateTransition:
    """The event that a lifecycle node came to a state."""

    def __init__(self, *, action, msg):
        self.action, self.goal_state = action, msg.goal_state.label


class OnStateTransition:
    def __init__(
        self,
        *,
        entities,
        target_lifecycle_node=None,
        transition=None,
        start_state=None,
        goal_state=None,
        matcher=None,
        handle_once=False,
    ):
        assert isinstance(target_lifecycle_node, LifecycleNode)
        self.entities, self.handle_once = entities, handle_once
        self.matches = lambda event: event.action is target_lifecycle_node and event.goal_state == goal_state


class ParameterValue:
    def __init__(self, value, *, value_type=None):
        self.value, self.value_type = value, value_type


class LaunchConfiguration:
    def __init__(self, variable_name, *, default=None):
        self.name = variable_name

    def perform(self, context):
        return context.launch_configurations[self.name]


class ExecutableInPackage:
    def __init__(self, executable, package):
        self.executable, self.package = executable, package


class PackageNotFoundError(KeyError):
    """As of ament_index_python."""


def modules(share: Path, installed: set[str]) -> dict[str, types.ModuleType]:
    """The modules by name. ``share`` of this package; ``installed``: packages that are found."""

    def prefix(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return f"/opt/{name}"

    members = {
        "launch": (LaunchContext, LaunchDescription),
        "launch.actions": (
            DeclareLaunchArgument,
            ExecuteProcess,
            OpaqueFunction,
            RegisterEventHandler,
            SetEnvironmentVariable,
        ),
        "launch.substitutions": (LaunchConfiguration,),
        "launch_ros": (),
        "launch_ros.actions": (LifecycleNode, Node),
        "launch_ros.event_handlers": (OnStateTransition,),
        "launch_ros.events": (),
        "launch_ros.events.lifecycle": (StateTransition,),
        "launch_ros.parameter_descriptions": (ParameterValue,),
        "launch_ros.substitutions": (ExecutableInPackage,),
        "ament_index_python": (),
        "ament_index_python.packages": (PackageNotFoundError,),
    }
    found = {name: types.ModuleType(name) for name in members}
    for name, classes in members.items():
        vars(found[name]).update({kind.__name__: kind for kind in classes})
    vars(found["ament_index_python.packages"]).update(
        get_package_prefix=prefix, get_package_share_directory=lambda name: str(share)
    )
    return found
